//! Sensors and their values.

use serde::Serialize;

/// A sensor, or several that are read together.
pub trait Sensor {
    /// The values of a reading; serialized as a JSON object.
    type Values: Serialize;

    /// Takes a reading.
    fn read(&mut self) -> impl Future<Output = Result<Self::Values, SensorFault>>;
}

/// Why a read failed, in a few words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct SensorFault(pub &'static str);

/// Values of a climate sensor. Integers, since most microcontrollers have no floating-point unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Climate {
    /// Temperature in thousandths of a degree Celsius.
    pub temperature_mc: i32,
    /// Relative humidity in thousandths (0 to 1000).
    pub humidity_pm: u16,
}

/// A simulated climate sensor: values rise and fall slowly, with faults on request.
#[derive(Debug, Clone)]
pub struct Simulated {
    reads: u32,
    fault_every: Option<u32>,
}

impl Simulated {
    /// Creates a sensor that never fails.
    pub const fn new() -> Self {
        Self { reads: 0, fault_every: None }
    }

    /// Creates a sensor that fails each `reads`th read; 0 is never.
    pub const fn failing_every(reads: u32) -> Self {
        Self { reads: 0, fault_every: if reads == 0 { None } else { Some(reads) } }
    }
}

impl Default for Simulated {
    fn default() -> Self {
        Self::new()
    }
}

impl Sensor for Simulated {
    type Values = Climate;

    async fn read(&mut self) -> Result<Climate, SensorFault> {
        self.reads = self.reads.wrapping_add(1);
        if self.fault_every.is_some_and(|every| self.reads.is_multiple_of(every)) {
            return Err(SensorFault("no answer"));
        }
        // Up for 512 reads, down for 512.
        let phase = self.reads & 1023;
        let height = if phase < 512 { phase } else { 1023 - phase };
        Ok(Climate {
            temperature_mc: 18_000 + height as i32 * 10,
            humidity_pm: 700 - (height / 4) as u16,
        })
    }
}
