//! The sensor node on an ESP32-C3: Wi-Fi.
//!
//! `examples/board` has the node and its console, `examples/app` the application.
//! `docs/src/boards.md` describes how to flash it. The LED is on GPIO8, active low, as on small
//! boards with a USB socket.

#![no_std]
#![no_main]

extern crate alloc;

mod crash;
mod machine;
mod sensor;
mod serial;

use embassy_executor::Spawner;
use embassy_net::Stack;
use embassy_time::{Duration, Timer, with_timeout};
use esp_hal::clock::CpuClock;
use esp_hal::gpio::{Level, Output, OutputConfig};
use esp_hal::ram;
use esp_hal::rng::Rng;
use esp_hal::timer::timg::TimerGroup;
use esp_radio::wifi::sta::StationConfig;
use esp_radio::wifi::{
    AuthenticationMethodConfig, Config, ControllerConfig, Interface, WifiController,
};
use esp_storage::FlashStorage;
use nanonsq_board::console::Session;
use nanonsq_board::firmware::{self, Board, NetResources};
use nanonsq_board::light::Light;
use nanonsq_board::settings::{Identity, Medium, Settings};
use nanonsq_board::store::Store;
use static_cell::StaticCell;

use machine::Esp32c3;
use sensor::Thermometer;
use serial::UsbSerial;

esp_bootloader_esp_idf::esp_app_desc!();

/// Offset of the settings: the first two sectors of the partition `nvs` in the default table. No
/// image overwrites it, and nothing else in this firmware uses it.
const SETTINGS_AT: u32 = 0x9000;
/// Time limit for joining a network before the next attempt. Shorter than the limit of supervision
/// for the driver.
const JOIN_LIMIT: Duration = Duration::from_secs(15);
/// Time between checks that the radio's driver runs.
const LOOK: Duration = Duration::from_secs(5);
/// Pause between two attempts to join.
const REST: Duration = Duration::from_secs(3);

#[embassy_executor::task]
async fn network(mut runner: embassy_net::Runner<'static, Interface>) {
    runner.run().await
}

#[embassy_executor::task]
async fn led(mut led: Output<'static>) {
    let mut ms = 0u32;
    loop {
        led.set_level(if firmware::light().is_on(ms) { Level::Low } else { Level::High });
        Timer::after_millis(Light::STEP_MS.into()).await;
        ms = ms.wrapping_add(Light::STEP_MS);
    }
}

/// Keeps the network joined.
#[embassy_executor::task]
async fn join(mut radio: WifiController<'static>) {
    loop {
        firmware::driver_round();
        match with_timeout(JOIN_LIMIT, radio.connect_async()).await {
            Ok(Ok(_)) => {
                firmware::log_info("Wi-Fi: joined");
                while with_timeout(LOOK, radio.wait_for_disconnect_async()).await.is_err() {
                    // The radio's task answers this call. If it hangs, this task hangs too, and the
                    // watchdog resets the chip.
                    let _ = radio.rssi();
                    firmware::driver_round();
                }
                firmware::log_warn("Wi-Fi: lost");
            }
            Ok(Err(_)) => firmware::log_warn("Wi-Fi: refused; are name and password right?"),
            Err(_) => firmware::log_warn("Wi-Fi: no answer; is the network in reach?"),
        }
        Timer::after(REST).await;
    }
}

#[esp_hal::main]
async fn main(spawner: Spawner) -> ! {
    let p = esp_hal::init(esp_hal::Config::default().with_cpu_clock(CpuClock::max()));
    // Only the radio uses the heap.
    esp_alloc::heap_allocator!(#[ram(reclaimed)] size: 64 * 1024);
    esp_alloc::heap_allocator!(size: 36 * 1024);
    let timers = TimerGroup::new(p.TIMG0);
    esp_rtos::start(timers.timer0, p.FROM_CPU_INTR0);
    start_log();

    let (machine, by_watchdog) = Esp32c3::new(p.RTC_TIMER);
    let crash = crash::start(by_watchdog);
    let mac = esp_hal::efuse::base_mac_address();
    let identity = Identity::new("ESP32-C3", Medium::Wifi, "esp", mac.as_bytes());
    let store = Store::new(FlashStorage::new(p.FLASH), SETTINGS_AT);
    let session = Session::load(identity, store);
    if let Ok(task) = led(Output::new(p.GPIO8, Level::High, OutputConfig::default())) {
        spawner.spawn(task);
    }

    let settings = session.saved();
    let net_config = firmware::net_config(settings);
    let station = station(settings);
    let random = Rng::new();
    let seed = u64::from(random.random()) << 32 | u64::from(random.random());
    let radio = p.WIFI;
    let bring_up = async move {
        const TWICE: &str = "a task is started twice";
        let station = station.ok_or("no wireless network is set")?;
        let config = ControllerConfig::default().with_initial_config(Config::Station(station));
        let controller = WifiController::new(radio, config).map_err(|_| "the radio")?;
        static RESOURCES: StaticCell<NetResources> = StaticCell::new();
        let resources = RESOURCES.init_with(NetResources::new);
        let (stack, runner): (Stack<'static>, _) =
            embassy_net::new(Interface::station(), net_config, resources, seed);
        spawner.spawn(network(runner).map_err(|_| TWICE)?);
        spawner.spawn(join(controller).map_err(|_| TWICE)?);
        Ok(stack)
    };
    let board = Board {
        session,
        serial: UsbSerial::new(p.USB_DEVICE),
        sensor: Thermometer::new(p.TSENS),
        machine,
        crash,
        seed: random.random(),
    };
    firmware::run(spawner, board, bring_up).await
}

/// Returns the radio's configuration if a network is set.
fn station(settings: &Settings) -> Option<StationConfig> {
    let ssid = settings.wifi_ssid.as_str();
    if ssid.is_empty() {
        return None;
    }
    let method = match settings.wifi_password.as_str() {
        "" => AuthenticationMethodConfig::Open,
        password => AuthenticationMethodConfig::WpaWpa2Personal(password.try_into().ok()?),
    };
    let config = StationConfig::default().with_ssid(ssid.try_into().ok()?);
    Some(config.with_authentication(method))
}

/// Installs the logger of the console.
fn start_log() {
    #[cfg(feature = "text")]
    {
        static LOG: firmware::Text = firmware::Text;
        // SAFETY: nothing else runs yet. `set_logger` requires compare-and-swap.
        let _ = unsafe { log::set_logger_racy(&LOG) };
        // SAFETY: as above.
        unsafe { log::set_max_level_racy(log::LevelFilter::Info) };
    }
}
