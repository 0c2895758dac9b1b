//! The chip's temperature.

use esp_hal::peripherals::TSENS;
use esp_hal::tsens::{Config, TemperatureSensor};
use nanonsq_app::{Sensor, SensorFault};
use serde::Serialize;

/// The ESP32-C3's temperature sensor. It measures the chip, which the radio heats, not the room.
pub(crate) struct Thermometer(Option<TemperatureSensor<'static>>);

/// The values of the sensor.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Temperature {
    /// Temperature in thousandths of a degree Celsius.
    temperature_mc: i32,
}

impl Thermometer {
    pub(crate) fn new(sensor: TSENS<'static>) -> Self {
        Self(TemperatureSensor::new(sensor, Config::default()).ok())
    }
}

impl Sensor for Thermometer {
    type Values = Temperature;

    async fn read(&mut self) -> Result<Temperature, SensorFault> {
        let sensor = self.0.as_ref().ok_or(SensorFault("no temperature sensor"))?;
        let celsius = sensor.get_temperature().to_celsius();
        Ok(Temperature { temperature_mc: (celsius * 1000.0) as i32 })
    }
}
