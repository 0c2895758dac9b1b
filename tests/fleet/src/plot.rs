//! A picture of how a fleet returns.

use std::fmt::Write as _;

use crate::Return;

/// The outage of nsqlookupd in the runs that are drawn, in seconds.
pub(crate) const DOWN: f64 = 5.0;

const NAMES: [(&str, &str); 3] = [
    ("Config::new, all nodes with the same seed: no jitter", "#c0392b"),
    ("Config::new, jitter: for a few nodes", "#e08e0b"),
    ("Config::fleet: for thousands", "#1f77b4"),
];

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 350.0;
/// The number of tenths of a second that are drawn.
const TENTHS: usize = 200;

/// Draws the connections in each tenth of a second, on a logarithmic scale.
pub(crate) fn svg(nodes: usize, series: &[Return]) -> String {
    let x = |tenth: f64| LEFT + tenth / TENTHS as f64 * (WIDTH - LEFT - 20.0);
    let decades = (nodes as f64).log10().ceil();
    let y = |n: f64| BOTTOM - (n.max(1.0).log10() / decades) * (BOTTOM - TOP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"15\">{nodes} nodes return to an nsqlookupd that was \
         down for {DOWN} s: connections per 100 ms</text>\n"
    );
    for decade in 0..=decades as u32 {
        let (n, at) = (10_u64.pow(decade), y(10_f64.powi(decade as i32)));
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{n}</text>",
            WIDTH - 20.0,
            LEFT - 6.0,
            at + 4.0
        );
    }
    for second in (0..=TENTHS / 10).step_by(2) {
        let at = x(second as f64 * 10.0);
        let _ = writeln!(
            svg,
            "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{second} s</text>",
            BOTTOM + 18.0
        );
    }
    for (row, (result, (name, color))) in series.iter().zip(NAMES).enumerate() {
        let mut points = String::new();
        for (tenth, &n) in result.tenths.iter().take(TENTHS).enumerate() {
            let (from, to) = (x(tenth as f64), x(tenth as f64 + 1.0));
            let at = y(n as f64);
            let _ = write!(points, "{from:.1},{at:.1} {to:.1},{at:.1} ");
        }
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"/>",
            points.trim_end()
        );
        let at = 70.0 + 18.0 * row as f64;
        let _ = writeln!(
            svg,
            "<text x=\"330\" y=\"{at}\" fill=\"{color}\">{name}: {} within a second</text>",
            result.peak()
        );
    }
    svg.push_str("</svg>\n");
    svg
}
