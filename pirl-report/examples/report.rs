//! The page, the charts and the TensorBoard events of a made-up run.
//!
//! `cargo run --release -p pirl-report --example report -- FOLDER` leaves them in FOLDER; without it, in a
//! temporary folder that is removed.

use std::error::Error;
use std::path::PathBuf;

use pirl_report::{Chart, EventFile, RunReport, Series, png};

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&folder)?;

    // What a training logs: the loss of each step, and its two terms.
    let steps: Vec<f64> = (1..=600).map(f64::from).collect();
    let noise = |step: f64| 0.15 * (step * 12.9898).sin() * (step * 0.73).cos();
    let image = |step: f64| 1.1 + 5.0 / (1.0 + step / 60.0) + noise(step);
    let patch = |step: f64| 1.6 + 5.4 / (1.0 + step / 90.0) + noise(step + 7.0);
    let total = |step: f64| 0.5 * (image(step) + patch(step));
    let rate = |step: f64| 0.03 * (1.0 + (std::f64::consts::PI * step / 600.0).cos()) / 2.0;

    let mut events = EventFile::create(&folder, 0)?;
    for &step in &steps {
        let scalars = [
            ("loss/total", total(step) as f32),
            ("lr", rate(step) as f32),
        ];
        events.scalars(step as u64, &scalars)?;
    }

    let series = |name: &str, of: &dyn Fn(f64) -> f64| {
        Series::new(name, steps.iter().map(|&step| (step, of(step))))
    };
    let loss = Chart::new("Loss", "step", "nats")
        .series(series("total", &total))
        .series(series("image", &image))
        .series(series("patch", &patch));
    let rate = Chart::new("Learning rate", "step", "per step").series(series("rate", &rate));
    std::fs::write(folder.join("loss.png"), png(&loss.to_image(720, 420)?)?)?;
    std::fs::write(folder.join("loss.svg"), loss.to_svg(720, 420)?)?;

    let report = RunReport {
        title: "runs/photos",
        facts: vec![
            ("last step".to_owned(), "600".to_owned()),
            ("loss".to_owned(), format!("{:.4}", total(600.0))),
        ],
        charts: vec![loss, rate],
        settings: "seed = 0\n\n[optim]\nlr = 0.03\n",
        ..RunReport::default()
    };
    std::fs::write(folder.join("report.html"), report.to_html()?)?;
    println!(
        "{}: report.html, loss.png, loss.svg and events",
        folder.display()
    );
    Ok(())
}
