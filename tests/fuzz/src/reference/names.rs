//! Names and addresses.

/// Returns whether NSQ accepts the name: `^[.a-zA-Z0-9_-]+(#ephemeral)?$`, at most 64 bytes.
pub(crate) fn is_name(text: &[u8]) -> bool {
    let stem = text.strip_suffix(b"#ephemeral").unwrap_or(text);
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    text.len() <= 64 && !stem.is_empty() && stem.iter().all(allowed)
}

/// Splits `host:port`, if it is a valid address.
pub(crate) fn address(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let is_number = !port.is_empty() && port.chars().all(|char| char.is_ascii_digit());
    let port = port.parse().ok().filter(|&port| is_number && port > 0)?;
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let name = Some(host).filter(|host| !host.starts_with('[') && !host.contains(':'));
    let host = literal.or(name)?;
    let is_host = host.chars().all(|char| char > ' ' && !"\x7f/[]".contains(char));
    (is_host && (1..=96).contains(&host.len())).then_some((host, port))
}
