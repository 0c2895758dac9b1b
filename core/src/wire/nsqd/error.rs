//! nsqd's error codes.

use core::fmt;

/// The first word of an error frame.
///
/// All but [`Fin`](Self::Fin), [`Req`](Self::Req) and [`Touch`](Self::Touch) are fatal: nsqd closes
/// the connection after the frame. The same bytes would be refused again; only [`Sub`](Self::Sub),
/// [`Pub`](Self::Pub), [`Mpub`](Self::Mpub), [`Dpub`](Self::Dpub) and the AUTH ones can pass later.
/// nsqlookupd uses the first five, each of them fatal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ErrorCode {
    /// `E_INVALID`: an unknown command, one that does not fit the state, or a bad parameter. Fatal.
    Invalid,
    /// `E_BAD_PROTOCOL`: the magic is not this server's. Fatal.
    BadProtocol,
    /// `E_BAD_BODY`: the body of IDENTIFY, AUTH or MPUB. Fatal.
    BadBody,
    /// `E_BAD_TOPIC`: not a topic name. Fatal.
    BadTopic,
    /// `E_BAD_CHANNEL`: not a channel name. Fatal.
    BadChannel,
    /// `E_BAD_MESSAGE`: a message is empty, too big or incomplete. Fatal.
    BadMessage,
    /// `E_IDENTIFY_FAILED`: the features asked for cannot be had together, or an upgrade failed.
    /// Fatal.
    IdentifyFailed,
    /// `E_AUTH_DISABLED`: AUTH sent to an nsqd without authorization. Fatal.
    AuthDisabled,
    /// `E_AUTH_FAILED`: the authorization server refused or is not to be reached. Fatal.
    AuthFailed,
    /// `E_AUTH_FIRST`: the command needs AUTH before it. Fatal.
    AuthFirst,
    /// `E_AUTH_ERROR`: nsqd could not answer AUTH. Fatal.
    AuthError,
    /// `E_UNAUTHORIZED`: not permitted for this topic or channel. Fatal.
    Unauthorized,
    /// `E_SUB_FAILED`: the channel is going away, or has its most consumers. Fatal.
    Sub,
    /// `E_PUB_FAILED`: the topic did not take the message. Fatal.
    Pub,
    /// `E_MPUB_FAILED`: the topic did not take the messages, or not all of them. Fatal.
    Mpub,
    /// `E_DPUB_FAILED`: the topic did not take the message. Fatal.
    Dpub,
    /// `E_FIN_FAILED`: the message is not, or no longer, this client's. Not fatal.
    Fin,
    /// `E_REQ_FAILED`: the message is not, or no longer, this client's. Not fatal.
    Req,
    /// `E_TOUCH_FAILED`: the message is not, or no longer, this client's. Not fatal.
    Touch,
    /// Any other word. Taken as fatal.
    Other,
}

/// Every code but `Other`, in the order of [`NAMES`].
const CODES: [ErrorCode; 19] = [
    ErrorCode::Invalid,
    ErrorCode::BadProtocol,
    ErrorCode::BadBody,
    ErrorCode::BadTopic,
    ErrorCode::BadChannel,
    ErrorCode::BadMessage,
    ErrorCode::IdentifyFailed,
    ErrorCode::AuthDisabled,
    ErrorCode::AuthFailed,
    ErrorCode::AuthFirst,
    ErrorCode::AuthError,
    ErrorCode::Unauthorized,
    ErrorCode::Sub,
    ErrorCode::Pub,
    ErrorCode::Mpub,
    ErrorCode::Dpub,
    ErrorCode::Fin,
    ErrorCode::Req,
    ErrorCode::Touch,
];

/// The names in one text: half the flash of a table of strings.
const NAMES: &str = "E_INVALID E_BAD_PROTOCOL E_BAD_BODY E_BAD_TOPIC E_BAD_CHANNEL E_BAD_MESSAGE \
     E_IDENTIFY_FAILED E_AUTH_DISABLED E_AUTH_FAILED E_AUTH_FIRST E_AUTH_ERROR E_UNAUTHORIZED \
     E_SUB_FAILED E_PUB_FAILED E_MPUB_FAILED E_DPUB_FAILED E_FIN_FAILED E_REQ_FAILED \
     E_TOUCH_FAILED";

impl ErrorCode {
    /// Splits the data of an error frame (or of a V1 reply) into its code and the description
    /// after it, which may be empty. Of an unknown code all of the data is the description.
    pub fn parse(data: &[u8]) -> (Self, &[u8]) {
        let end = data.iter().position(|byte| *byte == b' ').unwrap_or(data.len());
        let (word, rest) = data.split_at_checked(end).unwrap_or_default();
        let names = NAMES.as_bytes().split(|byte| *byte == b' ');
        match names.zip(CODES).find(|(name, _)| *name == word) {
            Some((_, code)) => (code, rest.split_first().map_or(rest, |(_, detail)| detail)),
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
            if code == self {
                return NAMES.get(start..end).unwrap_or_default();
            }
            start = end.saturating_add(1);
        }
        ""
    }

    /// Whether nsqd closes the connection after it.
    pub const fn is_fatal(self) -> bool {
        !matches!(self, Self::Fin | Self::Req | Self::Touch)
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
