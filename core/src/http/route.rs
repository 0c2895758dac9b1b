//! Selects the endpoint of a request.

use super::answer::{Refusal, Status};
use super::request::{Method, Request};
use crate::wire::Write;

/// A set of methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub(super) struct Methods(u8);

impl Methods {
    pub(super) const NONE: Self = Self(0);

    /// The methods in alphabetical order, as they are listed.
    const ALL: [(Method, &'static str); 4] = [
        (Method::Get, "GET"),
        (Method::Options, "OPTIONS"),
        (Method::Post, "POST"),
        (Method::Put, "PUT"),
    ];

    pub(super) fn with(self, method: Method) -> Self {
        let at = Self::ALL.iter().position(|(is, _)| *is == method);
        Self(at.map_or(self.0, |at| self.0 | 1u8.unbounded_shl(at as u32)))
    }

    /// Writes the header line, if the set is not empty.
    pub(super) fn emit<W: Write>(self, w: &mut W) -> Result<(), W::Error> {
        let mut before = "Allow: ";
        for (at, (_, name)) in (0u32..).zip(&Self::ALL) {
            if self.0.unbounded_shr(at) & 1 == 1 {
                w.write_all(before.as_bytes())?;
                w.write_all(name.as_bytes())?;
                before = ", ";
            }
        }
        if self == Self::NONE { Ok(()) } else { w.write_all(b"\r\n") }
    }
}

/// An endpoint: a method and a path. A path that ends in `/` matches any path with one more name
/// behind it, which [`Request::name_after`] returns.
#[derive(Debug, Clone, Copy)]
pub struct Route<R> {
    /// The method.
    pub method: Method,
    /// The path.
    pub path: &'static str,
    /// The service's value for the endpoint.
    pub to: R,
}

/// Returns the endpoint of `request`. Else fails with 404, with 405 and the methods of the path, or
/// for `OPTIONS` with those methods.
pub fn find<R: Copy>(routes: &[Route<R>], request: &Request<'_>) -> Result<R, Refusal> {
    let mut allow = Methods::NONE;
    for route in routes {
        let fits = if route.path.ends_with('/') {
            request.name_after(route.path).is_some()
        } else {
            request.is_for(route.path)
        };
        if fits && route.method == request.method() {
            return Ok(route.to);
        }
        if fits {
            allow = allow.with(route.method);
        }
    }
    // A request for the server itself, which has no endpoint.
    let is_for_all = request.is_for("*");
    if allow == Methods::NONE && !is_for_all {
        return Err(Refusal::not_found("NOT_FOUND"));
    }
    let allow = allow.with(Method::Options);
    if request.method() == Method::Options {
        return Err(Refusal { status: Status::Ok, code: "", allow });
    }
    Err(Refusal { status: Status::MethodNotAllowed, code: "METHOD_NOT_ALLOWED", allow })
}
