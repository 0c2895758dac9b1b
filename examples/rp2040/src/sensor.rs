//! The chip's temperature.

use embassy_rp::Peri;
use embassy_rp::adc::{Adc, Blocking, Channel, Config};
use embassy_rp::peripherals::{ADC, ADC_TEMP_SENSOR};
use nanonsq_app::{Sensor, SensorFault};
use serde::Serialize;

/// The RP2040's temperature sensor. Uncalibrated: the error is several degrees, but constant.
pub struct Thermometer {
    adc: Adc<'static, Blocking>,
    channel: Channel<'static>,
}

/// The values of the sensor.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Temperature {
    /// Temperature in thousandths of a degree Celsius.
    pub temperature_mc: i32,
}

impl Thermometer {
    pub(crate) fn new(adc: Peri<'static, ADC>, sensor: Peri<'static, ADC_TEMP_SENSOR>) -> Self {
        Self {
            adc: Adc::new_blocking(adc, Config::default()),
            channel: Channel::new_temp_sensor(sensor),
        }
    }
}

impl Sensor for Thermometer {
    type Values = Temperature;

    async fn read(&mut self) -> Result<Temperature, SensorFault> {
        // Blocks for 2 microseconds.
        let raw = self.adc.blocking_read(&mut self.channel);
        raw.map(|raw| Temperature { temperature_mc: millidegrees(raw) })
            .map_err(|_| SensorFault("the ADC failed"))
    }
}

/// Converts a raw ADC value (RP2040 datasheet, 4.9.5): 27 °C at 0.706 V, -1.721 mV per degree,
/// 4096 steps of 3.3 V.
fn millidegrees(raw: u16) -> i32 {
    let microvolts = (i64::from(raw) * 3_300_000) / 4096;
    27_000 - ((microvolts - 706_000) * 1000 / 1721) as i32
}
