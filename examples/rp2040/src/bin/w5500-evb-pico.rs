//! The sensor node on WIZnet's W5500-EVB-Pico: Ethernet.

#![no_std]
#![no_main]

use embassy_executor::Spawner;
use embassy_net::Stack;
use embassy_net_wiznet::chip::W5500;
use embassy_net_wiznet::{Device, Runner, State};
use embassy_rp::clocks::RoscRng;
use embassy_rp::gpio::{Input, Level, Output, Pull};
use embassy_rp::peripherals::{DMA_CH0, DMA_CH1, SPI0};
use embassy_rp::spi::{Async, Config, Spi};
use embassy_rp::{bind_interrupts, dma};
use embassy_time::{Delay, Timer};
use embedded_hal_bus::spi::ExclusiveDevice;
use nanonsq_board::firmware::{self, NetResources};
use nanonsq_board::light::Light;
use nanonsq_board::settings::Medium;
use nanonsq_rp2040::wiznet::{Line, Receive, Watched};
use nanonsq_rp2040::{Parts, start};
use static_cell::StaticCell;

bind_interrupts!(struct Irqs {
    DMA_IRQ_0 => dma::InterruptHandler<DMA_CH0>, dma::InterruptHandler<DMA_CH1>;
});

/// Frame buffers in each direction.
const FRAMES: usize = 8;
/// The chip's datasheet guarantees 33.3 MHz, with 80 MHz in theory.
const SPI_HZ: u32 = 31_250_000;

type EthernetSpi = Watched<ExclusiveDevice<Spi<'static, SPI0, Async>, Output<'static>, Delay>>;

#[embassy_executor::task]
async fn ethernet(runner: Runner<'static, W5500, EthernetSpi, Line, Output<'static>>) {
    runner.run().await
}

#[embassy_executor::task]
async fn network(mut runner: embassy_net::Runner<'static, Device<'static>>) {
    runner.run().await
}

#[embassy_executor::task]
async fn led(mut led: Output<'static>) {
    let mut ms = 0u32;
    loop {
        led.set_level(Level::from(firmware::light().is_on(ms)));
        Timer::after_millis(Light::STEP_MS.into()).await;
        ms = ms.wrapping_add(Light::STEP_MS);
    }
}

#[embassy_executor::main(executor = "embassy_rp::executor::Executor", entry = "cortex_m_rt::entry")]
async fn main(spawner: Spawner) {
    let p = embassy_rp::init(Default::default());
    let parts = Parts {
        flash: p.FLASH,
        usb: p.USB,
        watchdog: p.WATCHDOG,
        adc: p.ADC,
        temperature: p.ADC_TEMP_SENSOR,
    };
    let (board, unique) = start(spawner, parts, "W5500-EVB-Pico", Medium::Ethernet);
    if let Ok(task) = led(Output::new(p.PIN_25, Level::Low)) {
        spawner.spawn(task);
    }

    let config = firmware::net_config(board.session.saved());
    let bring_up = async {
        let mut spi = Config::default();
        spi.frequency = SPI_HZ;
        let spi = Spi::new(p.SPI0, p.PIN_18, p.PIN_19, p.PIN_16, p.DMA_CH0, p.DMA_CH1, Irqs, spi);
        let spi = ExclusiveDevice::new(spi, Output::new(p.PIN_17, Level::High), Delay)
            .map_err(|_| "the W5500's chip select")?;
        static RECEIVE: StaticCell<Receive> = StaticCell::new();
        let receive: &'static _ = RECEIVE.init(Receive::new());
        let spi = Watched::new(spi, receive);
        let interrupt = Line::new(Input::new(p.PIN_21, Pull::Up), receive);
        let reset = Output::new(p.PIN_20, Level::High);
        static STATE: StaticCell<State<FRAMES, FRAMES>> = StaticCell::new();
        let state = STATE.init_with(State::new);
        // The chip has no MAC address: use a locally administered one with the board's number.
        let [.., c, d, e, f, g] = unique;
        let mac = [0x02, c, d, e, f, g];
        let (device, runner) = embassy_net_wiznet::new(mac, state, spi, interrupt, reset)
            .await
            .map_err(|_| "the W5500 does not answer")?;
        spawner.spawn(ethernet(runner).map_err(|_| "a task is started twice")?);

        static RESOURCES: StaticCell<NetResources> = StaticCell::new();
        let (stack, runner): (Stack<'static>, _) = embassy_net::new(
            device,
            config,
            RESOURCES.init_with(NetResources::new),
            RoscRng.next_u64(),
        );
        spawner.spawn(network(runner).map_err(|_| "a task is started twice")?);
        Ok(stack)
    };
    firmware::run(spawner, board, bring_up).await
}
