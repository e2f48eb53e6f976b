//! Charts of the results.

use plotters::prelude::*;

use crate::table::Row;
use crate::wrk::Seen;

/// The name of the gateway in tables.
const OWN_NAME: &str = "zvgate";
const OWN: RGBColor = RGBColor(11, 114, 133);
const OTHER: RGBColor = RGBColor(173, 181, 189);
const LINES: [RGBColor; 6] = [
    OWN,
    RGBColor(224, 49, 49),
    RGBColor(240, 140, 0),
    RGBColor(47, 158, 68),
    RGBColor(156, 54, 181),
    RGBColor(73, 80, 87),
];

/// Bars of the CPU time of a hit, relative to the gateway's in the same round; the thin line spans minimum to maximum.
pub(crate) fn bars(rows: &[Row]) -> String {
    let own = rows.iter().find(|row| row.name == OWN_NAME).expect("the gateway was measured");
    let cpu = |seen: &Seen| seen.cpu;
    let ratios: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.ratio_to(own, cpu))).collect();
    let count = i32::try_from(ratios.len()).unwrap_or(i32::MAX);
    draw((760, 60 + 34 * rows.len()), |area| {
        let most = ratios.iter().map(|(_, ratio)| ratio.2).fold(1.0, f64::max);
        let mut chart = ChartBuilder::on(&area)
            .caption("CPU time of a hit, relative to zvgate (less is better)", ("sans-serif", 16))
            .margin(8)
            .margin_left(280)
            .build_cartesian_2d(0.0..most * 1.15, 0..count)?;
        let rows = ratios.iter().zip((0..count).rev());
        for ((name, (least, half, most)), place) in rows {
            let colour = if *name == OWN_NAME { OWN } else { OTHER };
            let mut bar = Rectangle::new([(0.0, place), (*half, place + 1)], colour.filled());
            bar.set_margin(6, 6, 0, 0);
            chart.draw_series([bar])?;
            let middle = chart.backend_coord(&(0.0, place)).1 - 16;
            let at = |ratio: f64| chart.backend_coord(&(ratio, place)).0;
            area.draw(&PathElement::new([(at(*least), middle), (at(*most), middle)], BLACK))?;
            let style = ("sans-serif", 14).into_text_style(&area);
            area.draw(&Text::new(format!("{half:.2}"), (at(most.max(*half)) + 6, middle - 7), style.clone()))?;
            area.draw(&Text::new((*name).to_owned(), (8, middle - 7), style))?;
        }
        Ok(())
    })
}

/// A line of a plot.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A plot of lines with two logarithmic scales.
pub(crate) fn lines(title: &str, across: &str, up: &str, lines: &[Line]) -> String {
    let of = |axis: fn(&(f64, f64)) -> f64| {
        let values = lines.iter().flat_map(|line| &line.points).map(axis);
        values.fold((f64::INFINITY, 0.0), |(least, most): (f64, f64), value| (least.min(value), most.max(value)))
    };
    let ((left, right), (low, high)) = (of(|point| point.0), of(|point| point.1));
    draw((760, 320), |area| {
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 16))
            .margin(8)
            .margin_right(24)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d((left..right * 1.01).log_scale(), (low * 0.8..high * 1.25).log_scale())?;
        chart.configure_mesh().x_desc(across).y_desc(up).light_line_style(WHITE).draw()?;
        for (number, line) in lines.iter().enumerate() {
            let colour = LINES[number % LINES.len()];
            chart
                .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)).point_size(3))?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(OTHER).draw()?;
        Ok(())
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// Draws a picture; returns it as SVG text.
fn draw(
    (width, height): (u32, usize),
    paint: impl FnOnce(Area<'_>) -> Result<(), Box<dyn std::error::Error>>,
) -> String {
    let mut text = String::new();
    let area =
        SVGBackend::with_string(&mut text, (width, u32::try_from(height).unwrap_or(u32::MAX))).into_drawing_area();
    area.fill(&WHITE).expect("a picture in memory");
    paint(area).expect("a picture in memory");
    text
}
