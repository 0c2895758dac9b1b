//! Patterns of the LED.

/// The state of the device that the LED shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Light {
    /// A required setting is missing: two short flashes a second.
    Setup,
    /// No link or no address: five flashes a second.
    NoNetwork,
    /// Not connected to an nsqd: one flash a second.
    NoNsqd,
    /// Connected: on.
    Connected,
    /// The command `blink`: ten flashes a second.
    Here,
}

impl Light {
    /// The longest time between two updates of the LED, in milliseconds.
    pub const STEP_MS: u32 = 50;

    /// Returns whether the LED is on at the uptime `ms`.
    pub fn is_on(self, ms: u32) -> bool {
        match self {
            Self::Setup => matches!(ms % 1000, 0..=99 | 200..=299),
            Self::NoNetwork => ms % 200 < 100,
            Self::NoNsqd => ms % 1000 < 500,
            Self::Connected => true,
            Self::Here => ms % 100 < 50,
        }
    }

    /// Converts from a byte, for an atomic.
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::NoNetwork,
            2 => Self::NoNsqd,
            3 => Self::Connected,
            4 => Self::Here,
            _ => Self::Setup,
        }
    }

    /// Converts to a byte, for an atomic.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Setup => 0,
            Self::NoNetwork => 1,
            Self::NoNsqd => 2,
            Self::Connected => 3,
            Self::Here => 4,
        }
    }
}
