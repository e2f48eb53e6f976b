//! Charts of the last ten minutes, as inline SVG.

use maud::{Markup, html};

use crate::gateway::{HISTORY_STEPS, Status, StatusStep};

/// The size of a chart in its own units.
const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 90.0;
/// Room for the numbers of the axes.
const TOP: f64 = 12.0;
const BOTTOM: f64 = 12.0;

/// A line of a chart; moments without a value interrupt it.
struct Line {
    name: &'static str,
    unit: &'static str,
    values: Vec<Option<f64>>,
}

impl Line {
    fn new(
        name: &'static str,
        unit: &'static str,
        status: &Status,
        value: impl Fn(&StatusStep) -> Option<f64>,
    ) -> Self {
        Self { name, unit, values: status.history.iter().map(value).collect() }
    }

    fn last(&self) -> String {
        let last = self.values.last().copied().flatten();
        last.map_or("none".to_owned(), |value| format!("{} {}", rounded(value), self.unit).trim_end().to_owned())
    }
}

/// Three significant digits, about.
fn rounded(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

pub(super) fn section(status: &Status) -> Markup {
    let of =
        |index: usize| move |step: &StatusStep| per_second(step, step.requests.get(index).copied().unwrap_or_default());
    let kind = |name: &str| status.request_kinds.iter().position(|kind| *kind == name).unwrap_or(usize::MAX);
    let others = |step: &StatusStep| {
        let shown = [kind("hit"), kind("miss")];
        let rest = step.requests.iter().enumerate().filter(|(index, _)| !shown.contains(index)).map(|(_, count)| count);
        per_second(step, rest.sum())
    };
    let charts = [
        (
            "Requests by result",
            "per second",
            vec![
                Line::new("hits", "/s", status, of(kind("hit"))),
                Line::new("misses", "/s", status, of(kind("miss"))),
                Line::new("others", "/s", status, others),
                Line::new("failed (5xx)", "/s", status, |step| per_second(step, step.failed)),
            ],
        ),
        (
            "Hit ratio",
            "percent of reads",
            vec![Line::new("hit ratio", "%", status, |step| step.hit_ratio.map(|ratio| 100.0 * ratio))],
        ),
        (
            "Latency of responses",
            "milliseconds",
            vec![
                Line::new("p50", "ms", status, |step| step.p50_ms),
                Line::new("p99", "ms", status, |step| step.p99_ms),
            ],
        ),
        (
            "Calls to the platform",
            "per second",
            vec![
                Line::new("all", "/s", status, |step| per_second(step, step.calls)),
                Line::new("busiest tenant and route", "/s", status, |step| per_second(step, step.most_calls)),
                Line::new("rate of one tenant and route", "/s", status, |_| status.rate_per_s),
            ],
        ),
    ];
    html! {
        h2 #history-title { "Last 10 minutes" }
        div.charts { @for (title, unit, lines) in &charts { (chart(title, unit, lines)) } }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn per_second(step: &StatusStep, count: u64) -> Option<f64> {
    Some(count as f64 / step.seconds.max(1.0))
}

fn chart(title: &str, unit: &str, lines: &[Line]) -> Markup {
    let highest = lines.iter().flat_map(|line| line.values.iter().flatten()).copied().fold(0.0, f64::max).max(1e-9);
    let now = lines.iter().map(|line| format!("{} {}", line.name, line.last())).collect::<Vec<_>>().join(", ");
    let styles = ["first", "second", "third", "fourth"];
    let label = format!("{title}, {unit}. Now: {now}. Highest: {}.", rounded(highest));
    html! {
        figure {
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(label) {
                text x="2" y="9" { (rounded(highest)) }
                text x="2" y=(HEIGHT - 2.0) { "10 min ago" }
                text x=(WIDTH - 2.0) y=(HEIGHT - 2.0) text-anchor="end" { "now" }
                @for (line, style) in lines.iter().zip(styles) {
                    @for points in pieces(&line.values, highest) { polyline class=(style) points=(points) {} }
                }
            }
            figcaption {
                strong { (title) } " (" (unit) "), now: "
                @for (index, (line, stroke)) in lines.iter().zip(["solid", "dashed", "dotted", "dash-dotted"]).enumerate() {
                    @if index > 0 { "; " } (line.name) " (" (stroke) ") " (line.last())
                }
            }
        }
    }
}

/// The points of the pieces of a line that are not interrupted. The last value is that of now, at the right.
#[expect(clippy::cast_precision_loss, reason = "at most 61 steps")]
fn pieces(values: &[Option<f64>], highest: f64) -> Vec<String> {
    let step = WIDTH / HISTORY_STEPS as f64;
    let point = |(index, value): (usize, f64)| {
        let x = WIDTH - step * (values.len() - 1 - index) as f64;
        (x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / highest)
    };
    let points: Vec<Option<(f64, f64)>> =
        values.iter().enumerate().map(|(index, value)| value.map(|value| point((index, value)))).collect();
    let pieces = points.split(Option::is_none).map(|piece| piece.iter().flatten().copied().collect::<Vec<_>>());
    let drawn = pieces.filter(|piece| !piece.is_empty()).map(|mut piece| {
        if let [(x, y)] = *piece {
            // A single point would not be seen.
            piece.insert(0, (x - step / 2.0, y));
        }
        piece.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
    });
    drawn.collect()
}
