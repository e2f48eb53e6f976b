//! The chart for the README.

use std::fmt::Write as _;

use crate::table::Row;

/// Bars of hits a second, as ratios to the limit of the machine in the same round; the thin line is from the least to the most.
pub(crate) fn bars(rows: &[Row]) -> String {
    const LEFT: u32 = 250;
    const WIDTH: u32 = 420;
    const STEP: u32 = 34;
    let limit = rows.iter().find(|row| row.name == "bare TCP loop").expect("the limit was measured");
    let mut drawn = String::new();
    for (place, row) in rows.iter().enumerate() {
        let (least, half, most) = row.ratio_to(limit);
        let x = |ratio: f64| f64::from(LEFT) + ratio * f64::from(WIDTH);
        let y = 44.0 + f64::from(u32::try_from(place).unwrap_or_default() * STEP);
        let colour = if row.name == "zvgate" { "#0b7285" } else { "#adb5bd" };
        let _ = write!(
            drawn,
            r##"<text x="{}" y="{}" text-anchor="end">{}</text><rect x="{LEFT}" y="{y}" width="{:.1}" height="20" fill="{colour}"/><line x1="{:.1}" x2="{:.1}" y1="{mid}" y2="{mid}" stroke="#212529"/><text x="{:.1}" y="{}">{half:.2}</text>"##,
            LEFT - 8,
            y + 15.0,
            row.name,
            x(half) - f64::from(LEFT),
            x(least),
            x(most),
            x(most.max(half)) + 6.0,
            y + 15.0,
            mid = y + 10.0,
        );
    }
    let height = 60 + u32::try_from(rows.len()).unwrap_or_default() * STEP;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {height}" font-family="sans-serif" font-size="14" fill="#212529"><rect width="100%" height="100%" fill="#ffffff"/><text x="{LEFT}" y="24" font-weight="bold">Hits a second on one core, of a bare TCP loop's</text>{drawn}</svg>"##,
        LEFT + WIDTH + 90
    )
}
