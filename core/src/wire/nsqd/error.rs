//! nsqd's error codes.

use core::fmt;

/// Makes [`ErrorCode`] of one table: each code's variant, name and [`Meaning`].
macro_rules! error_codes {
    ($($(#[$doc:meta])* $code:ident = $name:literal means $meaning:ident,)+) => {
        /// The first word of an error frame.
        ///
        /// All but [`Fin`](Self::Fin), [`Req`](Self::Req) and [`Touch`](Self::Touch) are fatal: nsqd
        /// closes the connection after the frame. nsqlookupd uses the first five, each of them fatal.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[cfg_attr(feature = "defmt", derive(defmt::Format))]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* #[doc = concat!(" `", $name, "`; see [`Meaning::", stringify!($meaning), "`].")] $code,)+
            /// Any other word, of a server newer than this client. Taken as fatal and as
            /// [`Meaning::Temporary`]: messages are kept and sent again, because losing them would
            /// be worse.
            Other,
        }

        /// Every code but `Other`, in the order of [`NAMES`].
        const CODES: &[ErrorCode] = &[$(ErrorCode::$code,)+];

        /// The names in one text, a space after each: half the flash of a table of strings.
        const NAMES: &str = concat!($($name, " ",)+);

        impl ErrorCode {
            /// What the code says of the command that was refused.
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
    /// An unknown command, one that does not fit the state, or a bad parameter.
    Invalid = "E_INVALID" means Command,
    /// The magic is not this server's.
    BadProtocol = "E_BAD_PROTOCOL" means Connection,
    /// The body of IDENTIFY, AUTH or MPUB.
    BadBody = "E_BAD_BODY" means Message,
    /// Not a topic name.
    BadTopic = "E_BAD_TOPIC" means Topic,
    /// Not a channel name.
    BadChannel = "E_BAD_CHANNEL" means Channel,
    /// A message is empty, too big or incomplete.
    BadMessage = "E_BAD_MESSAGE" means Message,
    /// The features asked for cannot be had together, or an upgrade failed.
    IdentifyFailed = "E_IDENTIFY_FAILED" means Connection,
    /// AUTH was sent to an nsqd without authorization.
    AuthDisabled = "E_AUTH_DISABLED" means Auth,
    /// The authorization server refused or is not to be reached.
    AuthFailed = "E_AUTH_FAILED" means Auth,
    /// The command needs AUTH before it.
    AuthFirst = "E_AUTH_FIRST" means Auth,
    /// nsqd could not answer AUTH.
    AuthError = "E_AUTH_ERROR" means Temporary,
    /// Not permitted for this topic or channel.
    Unauthorized = "E_UNAUTHORIZED" means Topic,
    /// The channel is going away, or has its most consumers.
    Sub = "E_SUB_FAILED" means Temporary,
    /// The topic did not take the message.
    Pub = "E_PUB_FAILED" means Temporary,
    /// The topic did not take the messages, or not all of them.
    Mpub = "E_MPUB_FAILED" means Temporary,
    /// The topic did not take the message.
    Dpub = "E_DPUB_FAILED" means Temporary,
    /// The message is not, or no longer, this client's.
    Fin = "E_FIN_FAILED" means InFlight,
    /// The message is not, or no longer, this client's.
    Req = "E_REQ_FAILED" means InFlight,
    /// The message is not, or no longer, this client's.
    Touch = "E_TOUCH_FAILED" means InFlight,
}

/// What an [`ErrorCode`] says of the refused command: whether its sender should repeat it, and what
/// would have to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Meaning {
    /// The command's line; the description says what of it. A bad deferral is refused again,
    /// a command that does not fit the state is not.
    Command,
    /// A message of the command, or its body as a whole: refused again, but without that message
    /// the others may be taken.
    Message,
    /// The topic: every message to it is refused again.
    Topic,
    /// The channel: subscribing to it is refused again.
    Channel,
    /// The server or what was asked of it in the handshake, and no message.
    Connection,
    /// The authorization, and no message: refused until somebody changes the settings.
    Auth,
    /// nsqd cannot do it now: the same command may be taken later.
    Temporary,
    /// One message in flight, which nsqd has queued again. The only ones that are not fatal.
    InFlight,
}

impl ErrorCode {
    /// Splits the data of an error frame (or of a V1 reply) into its code and the description
    /// after it, which may be empty. Of an unknown code all of the data is the description.
    pub fn parse(data: &[u8]) -> (Self, &[u8]) {
        let end = data.iter().position(|byte| *byte == b' ').unwrap_or(data.len());
        let (word, rest) = data.split_at_checked(end).unwrap_or_default();
        let names = NAMES.as_bytes().split(|byte| *byte == b' ');
        match names.zip(CODES).find(|(name, _)| *name == word) {
            Some((_, code)) => (*code, rest.split_first().map_or(rest, |(_, detail)| detail)),
            None => (Self::Other, data),
        }
    }

    /// The code as nsqd writes it; empty for [`Other`](Self::Other).
    pub fn as_str(self) -> &'static str {
        // By hand: searching a `str` costs some 300 bytes of flash more.
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

    /// Whether nsqd closes the connection after it.
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
