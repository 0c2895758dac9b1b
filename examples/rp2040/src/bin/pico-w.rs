//! The sensor node on a Raspberry Pi Pico W: Wi-Fi.
//!
//! The firmware of the radio is in the crate `cyw43-firmware`, under Infineon's Permissive Binary
//! License: it may be redistributed unchanged, with its notice.

#![no_std]
#![no_main]

use cyw43::{A4, Aligned, Control, JoinOptions, NetDriver, PowerManagementMode, SpiBus};
use cyw43_pio::{DEFAULT_CLOCK_DIVIDER, PioSpi};
use embassy_executor::Spawner;
use embassy_net::Stack;
use embassy_rp::clocks::RoscRng;
use embassy_rp::gpio::{Level, Output};
use embassy_rp::peripherals::{DMA_CH0, PIO0};
use embassy_rp::pio::{InterruptHandler, Pio};
use embassy_rp::{bind_interrupts, dma};
use embassy_time::{Duration, Instant, Timer, with_timeout};
use nanonsq_board::firmware::{self, NetResources};
use nanonsq_board::light::Light;
use nanonsq_board::settings::{Medium, PASSWORD_MAX, SSID_MAX};
use nanonsq_rp2040::{Parts, start};
use static_cell::StaticCell;

bind_interrupts!(struct Irqs {
    PIO0_IRQ_0 => InterruptHandler<PIO0>;
    DMA_IRQ_0 => dma::InterruptHandler<DMA_CH0>;
});

static RADIO: Aligned<A4, [u8; cyw43_firmware::CYW43_43439A0.len()]> =
    Aligned(*cyw43_firmware::CYW43_43439A0);
const NVRAM_BIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nvram.bin"));
static NVRAM: Aligned<A4, [u8; NVRAM_BIN.len()]> = Aligned({
    let mut nvram = [0; NVRAM_BIN.len()];
    nvram.copy_from_slice(NVRAM_BIN);
    nvram
});

/// Time limit for joining a network before the next attempt. Shorter than the limit of supervision
/// for the driver.
const JOIN_LIMIT: Duration = Duration::from_secs(15);
/// Time without a link before the network is joined again.
const LINK_LIMIT: Duration = Duration::from_secs(5);

type RadioSpi = PioSpi<'static, PIO0, 0>;

#[embassy_executor::task]
async fn radio(runner: cyw43::Runner<'static, SpiBus<Output<'static>, RadioSpi>>) {
    runner.run().await
}

#[embassy_executor::task]
async fn network(mut runner: embassy_net::Runner<'static, NetDriver<'static>>) {
    runner.run().await
}

/// The name and password of the network.
struct Wifi {
    ssid: heapless::String<SSID_MAX>,
    password: heapless::String<PASSWORD_MAX>,
}

impl Wifi {
    async fn join(&self, control: &mut Control<'static>) {
        if self.ssid.is_empty() {
            return;
        }
        let options = match self.password.as_bytes() {
            [] => JoinOptions::new_open(),
            password => JoinOptions::new(password),
        };
        match with_timeout(JOIN_LIMIT, control.join(&self.ssid, options)).await {
            Ok(Ok(())) => firmware::log_info("Wi-Fi: joined"),
            Ok(Err(_)) => firmware::log_warn("Wi-Fi: refused; are name and password right?"),
            Err(_) => firmware::log_warn("Wi-Fi: no answer; is the network in reach?"),
        }
    }
}

/// Keeps the network joined, and sets the LED, which is connected to the radio.
#[embassy_executor::task]
async fn supervise(mut control: Control<'static>, wifi: Wifi, stack: Stack<'static>) {
    let (mut ms, mut is_on) = (0u32, false);
    let mut up = Instant::now();
    loop {
        let wanted = firmware::light().is_on(ms);
        // Also each second without a change: an answer of the radio shows that its driver runs.
        if wanted != is_on || ms.is_multiple_of(1000) {
            control.gpio_set(0, wanted).await;
            is_on = wanted;
            firmware::driver_round();
        }
        if stack.is_link_up() {
            up = Instant::now();
        } else if ms == 0 || up.elapsed() > LINK_LIMIT {
            wifi.join(&mut control).await;
            up = Instant::now();
        }
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
    let (board, _) = start(spawner, parts, "Pico W", Medium::Wifi);

    let settings = board.session.saved();
    let config = firmware::net_config(settings);
    let wifi = Wifi { ssid: settings.wifi_ssid.clone(), password: settings.wifi_password.clone() };
    let bring_up = async {
        const TWICE: &str = "a task is started twice";
        let power = Output::new(p.PIN_23, Level::Low);
        let select = Output::new(p.PIN_25, Level::High);
        let mut pio = Pio::new(p.PIO0, Irqs);
        let spi = PioSpi::new(
            &mut pio.common,
            pio.sm0,
            DEFAULT_CLOCK_DIVIDER,
            pio.irq0,
            select,
            p.PIN_24,
            p.PIN_29,
            dma::Channel::new(p.DMA_CH0, Irqs),
        );
        static STATE: StaticCell<cyw43::State> = StaticCell::new();
        let state = STATE.init_with(cyw43::State::new);
        let (device, mut control, runner) = cyw43::new(state, power, spi, &RADIO, &NVRAM).await;
        spawner.spawn(radio(runner).map_err(|_| TWICE)?);
        control.init(cyw43_firmware::CYW43_43439A0_CLM).await;
        control.set_power_management(PowerManagementMode::PowerSave).await;

        static RESOURCES: StaticCell<NetResources> = StaticCell::new();
        let resources = RESOURCES.init_with(NetResources::new);
        let (stack, runner): (Stack<'static>, _) =
            embassy_net::new(device, config, resources, RoscRng.next_u64());
        spawner.spawn(network(runner).map_err(|_| TWICE)?);
        spawner.spawn(supervise(control, wifi, stack).map_err(|_| TWICE)?);
        Ok(stack)
    };
    firmware::run(spawner, board, bring_up).await
}
