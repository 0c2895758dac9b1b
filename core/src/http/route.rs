//! Which path is what.

use super::answer::{Refusal, Status};
use super::request::{Method, Request};
use crate::wire::Write;

/// A set of methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub(super) struct Methods(u8);

impl Methods {
    pub(super) const NONE: Self = Self(0);

    /// In the order of the alphabet, as they are listed.
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

    /// The header line, if there is any.
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

/// One thing that may be asked for: with a method, at a path. A path that ends in `/` stands for
/// it with one more name behind it, which [`Request::name_after`] gives.
#[derive(Debug, Clone, Copy)]
pub struct Route<R> {
    /// The method.
    pub method: Method,
    /// The path.
    pub path: &'static str,
    /// What the service calls the endpoint.
    pub to: R,
}

/// What `request` asks for, else 404, 405 with the methods that the path has, or for `OPTIONS`
/// those methods.
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
    // What is asked of the server itself: nothing can be.
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
