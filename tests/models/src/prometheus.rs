//! A strict parser of Prometheus's text format 0.0.4, as far as counters and gauges go.

use std::collections::BTreeMap;

/// Returns the value of each series, as `name{label="value"}`.
///
/// # Panics
///
/// If the text is not in the format, or not in the form that is recommended: each family has a help
/// text, a type and samples, in one place; no series is there twice; counters end with `_total`.
#[track_caller]
pub fn parse(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with('\n'), "the last line has no end: {text}");
    let mut families = Vec::new();
    let mut series = BTreeMap::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let help = line.strip_prefix("# HELP ").expect(line);
        let (family, help) = help.split_once(' ').expect(line);
        assert!(is_name(family) && !help.is_empty(), "{line}");
        assert!(!families.contains(&family), "{family} is in two places");
        families.push(family);
        let typed = lines.next().and_then(|line| line.strip_prefix("# TYPE ")).expect(family);
        let (of, kind) = typed.split_once(' ').expect(typed);
        assert_eq!(of, family);
        assert!(matches!(kind, "counter" | "gauge"), "{typed}");
        assert_eq!(kind == "counter", family.ends_with("_total"), "{typed}");
        let before = series.len();
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').expect(line);
            let rest = name.strip_prefix(family).expect(line);
            check_labels(rest);
            let value = value.parse().expect(line);
            assert_eq!(series.insert(name.to_owned(), value), None, "twice: {line}");
        }
        assert!(series.len() > before, "{family} has no sample");
    }
    series
}

fn is_name(name: &str) -> bool {
    let is_part = |char: char| char.is_ascii_alphanumeric() || char == '_';
    name.starts_with(|char: char| is_part(char) && !char.is_ascii_digit())
        && name.chars().all(is_part)
}

/// Checks `{label="value",...}`, or nothing.
#[track_caller]
fn check_labels(labels: &str) {
    let Some(mut rest) = labels.strip_prefix('{') else { return assert_eq!(labels, "") };
    let mut keys = Vec::new();
    loop {
        let (key, value) = rest.split_once("=\"").expect(labels);
        assert!(is_name(key) && !keys.contains(&key), "{labels}");
        keys.push(key);
        let mut chars = value.char_indices();
        let end = loop {
            match chars.next().expect(labels) {
                (_, '\\') => {
                    assert!(matches!(chars.next(), Some((_, '\\' | '"' | 'n'))), "{labels}")
                }
                (at, '"') => break at,
                (_, char) => assert!(char != '\n', "{labels}"),
            }
        };
        match &value[end + 1..] {
            "}" => return,
            more => rest = more.strip_prefix(',').expect(labels),
        }
    }
}
