//! nsqd's error codes.

use core::fmt;

/// Defines [`ErrorCode`] by one table with each code's variant, name and [`Meaning`].
macro_rules! error_codes {
    ($($(#[$doc:meta])* $code:ident = $name:literal means $meaning:ident,)+) => {
        /// The code at the start of an error frame.
        ///
        /// All but [`Fin`](Self::Fin), [`Req`](Self::Req) and [`Touch`](Self::Touch) are fatal:
        /// nsqd closes the connection after the frame. nsqlookupd uses the first five, each of them
        /// fatal.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[cfg_attr(feature = "defmt", derive(defmt::Format))]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* #[doc = concat!(" `", $name, "`; see [`Meaning::", stringify!($meaning), "`].")] $code,)+
            /// Any other code, of a server newer than this client. Treated as fatal and as
            /// [`Meaning::Temporary`]: messages are kept and sent again, because losing them would
            /// be worse.
            Other,
        }

        /// Every code but `Other`, in the order of [`NAMES`].
        const CODES: &[ErrorCode] = &[$(ErrorCode::$code,)+];

        /// The names in one text, a space after each: half the flash of a table of strings.
        const NAMES: &str = concat!($($name, " ",)+);

        impl ErrorCode {
            /// Returns what the code means for the refused command.
            pub const fn meaning(self) -> Meaning {
                match self {
                    $(Self::$code => Meaning::$meaning,)+
                    Self::Other => Meaning::Temporary,
                }
            }
        }
    };
}

error_codes! {
    /// An unknown command, a command that does not fit the state, or a bad parameter.
    Invalid = "E_INVALID" means Command,
    /// The magic is not that of this server's protocol.
    BadProtocol = "E_BAD_PROTOCOL" means Connection,
    /// The body of IDENTIFY, AUTH or MPUB is invalid.
    BadBody = "E_BAD_BODY" means Message,
    /// The topic name is invalid.
    BadTopic = "E_BAD_TOPIC" means Topic,
    /// The channel name is invalid.
    BadChannel = "E_BAD_CHANNEL" means Channel,
    /// A message is empty, too big or incomplete.
    BadMessage = "E_BAD_MESSAGE" means Message,
    /// The requested features cannot be combined, or an upgrade failed.
    IdentifyFailed = "E_IDENTIFY_FAILED" means Connection,
    /// AUTH was sent to an nsqd without authorization.
    AuthDisabled = "E_AUTH_DISABLED" means Auth,
    /// The authorization server refused or cannot be reached.
    AuthFailed = "E_AUTH_FAILED" means Auth,
    /// The command requires AUTH before it.
    AuthFirst = "E_AUTH_FIRST" means Auth,
    /// nsqd could not answer AUTH.
    AuthError = "E_AUTH_ERROR" means Temporary,
    /// The client has no permission for this topic or channel.
    Unauthorized = "E_UNAUTHORIZED" means Topic,
    /// The channel is being deleted, or has its maximum of consumers.
    Sub = "E_SUB_FAILED" means Temporary,
    /// The topic did not accept the message.
    Pub = "E_PUB_FAILED" means Temporary,
    /// The topic did not accept the messages, or not all of them.
    Mpub = "E_MPUB_FAILED" means Temporary,
    /// The topic did not accept the message.
    Dpub = "E_DPUB_FAILED" means Temporary,
    /// The message is not in flight to this client, or not any more.
    Fin = "E_FIN_FAILED" means InFlight,
    /// The message is not in flight to this client, or not any more.
    Req = "E_REQ_FAILED" means InFlight,
    /// The message is not in flight to this client, or not any more.
    Touch = "E_TOUCH_FAILED" means InFlight,
}

/// The meaning of an [`ErrorCode`] for the refused command: whether its sender should repeat the
/// command, and what has to change before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Meaning {
    /// The line of the command; the description names the part. A bad deferral is refused again, a
    /// command that does not fit the state is not.
    Command,
    /// A message of the command, or the body as a whole: refused again, but without that message
    /// the others may be accepted.
    Message,
    /// The topic: every message to it is refused again.
    Topic,
    /// The channel: subscribing to it is refused again.
    Channel,
    /// The server or the settings of the handshake, and no message.
    Connection,
    /// The authorization, and no message: refused until the settings are changed.
    Auth,
    /// nsqd cannot execute the command now: it may accept the same command later.
    Temporary,
    /// A message in flight, which nsqd has queued again. The only codes that are not fatal.
    InFlight,
}

impl ErrorCode {
    /// Splits the data of an error frame (or of a V1 reply) into its code and the description after
    /// it, which may be empty. With an unknown code, all of the data is the description.
    pub fn parse(data: &[u8]) -> (Self, &[u8]) {
        let end = data.iter().position(|byte| *byte == b' ').unwrap_or(data.len());
        let (word, rest) = data.split_at_checked(end).unwrap_or_default();
        let names = NAMES.as_bytes().split(|byte| *byte == b' ');
        match names.zip(CODES).find(|(name, _)| *name == word) {
            Some((_, code)) => (*code, rest.split_first().map_or(rest, |(_, detail)| detail)),
            None => (Self::Other, data),
        }
    }

    /// Returns the code as nsqd writes it; empty for [`Other`](Self::Other).
    pub fn as_str(self) -> &'static str {
        // Without a search in `str`, which would cost some 300 bytes of flash more.
        let mut start = 0usize;
        for code in CODES {
            let rest = NAMES.as_bytes().get(start..).unwrap_or_default();
            let len = rest.iter().take_while(|byte| **byte != b' ').count();
            let end = start.saturating_add(len);
            if *code == self {
                return NAMES.get(start..end).unwrap_or_default();
            }
            start = end.saturating_add(1);
        }
        ""
    }

    /// Returns whether nsqd closes the connection after the error.
    pub const fn is_fatal(self) -> bool {
        !matches!(self.meaning(), Meaning::InFlight)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Other => "an unknown error",
            _ => self.as_str(),
        })
    }
}
