//! What the LED says.

/// How the device is, as somebody sees it who has no terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Light {
    /// Something has to be set: two short flashes a second.
    Setup,
    /// No link, no address: five flashes a second.
    NoNetwork,
    /// No nsqd: one flash a second.
    NoNsqd,
    /// All is well: on.
    Connected,
    /// It was asked which one it is: ten flashes a second.
    Here,
}

impl Light {
    /// From how many milliseconds to how many the LED may be left as it is.
    pub const STEP_MS: u32 = 50;

    /// Whether the LED is on at a time.
    pub fn is_on(self, ms: u32) -> bool {
        match self {
            Self::Setup => matches!(ms % 1000, 0..=99 | 200..=299),
            Self::NoNetwork => ms % 200 < 100,
            Self::NoNsqd => ms % 1000 < 500,
            Self::Connected => true,
            Self::Here => ms % 100 < 50,
        }
    }

    /// For an atomic.
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::NoNetwork,
            2 => Self::NoNsqd,
            3 => Self::Connected,
            4 => Self::Here,
            _ => Self::Setup,
        }
    }

    /// For an atomic.
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
