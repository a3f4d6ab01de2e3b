//! The page of a run: its curves, results, pictures and settings, in a file that needs nothing else.

use askama::Template;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use pirl_data::Image;

use crate::chart::Chart;
use crate::error::Result;
use crate::model_card::CardResult;
use crate::page::colors;
use crate::png;

/// Sides of a chart, pixels: two are beside each other on a screen, one is as wide as a telephone.
const CHART: (usize, usize) = (420, 275);

/// What a run did, for people to look at and to send round.
#[derive(Clone, Debug, Default)]
pub struct RunReport<'a> {
    /// The run's name.
    pub title: &'a str,
    /// What stands above the charts, in a few words each: its name, and what it is.
    pub facts: Vec<(String, String)>,
    /// What evaluations found.
    pub results: Vec<CardResult>,
    /// In their order.
    pub charts: Vec<Chart>,
    /// Below the charts, in their order.
    pub pictures: Vec<Picture>,
    /// The settings, as text.
    pub settings: &'a str,
}

/// A picture on a page.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Its heading.
    pub title: String,
    /// What is seen, in a sentence or two.
    pub note: String,
    /// Drawn at its size, or smaller where the page is narrower.
    pub image: Image,
}

#[derive(Template)]
#[template(path = "run.html")]
struct Page<'a> {
    title: &'a str,
    facts: &'a [(String, String)],
    results: &'a [CardResult],
    charts: Vec<(&'a str, String)>,
    /// The picture, its width, and its PNG file in base 64.
    pictures: Vec<(&'a Picture, usize, String)>,
    settings: &'a str,
    /// Colours of charts by day and by night.
    colors: Vec<(String, String)>,
}

impl RunReport<'_> {
    /// One HTML page with all of it: light or dark as its reader's screen, readable on a telephone, with
    /// nothing to load.
    ///
    /// # Errors
    /// [`ReportError::Draw`](crate::ReportError::Draw) and [`ReportError::Page`](crate::ReportError::Page);
    /// those of [`png`](crate::png()) for a picture.
    pub fn to_html(&self) -> Result<String> {
        let drawn = |chart| {
            let chart: &Chart = chart;
            Ok((chart.title(), chart.svg(CHART, false)?))
        };
        let encoded = |picture| {
            let picture: &Picture = picture;
            let bytes = png(&picture.image)?;
            Ok((picture, picture.image.width, BASE64_STANDARD.encode(bytes)))
        };
        let page = Page {
            title: self.title,
            facts: &self.facts,
            results: &self.results,
            pictures: self.pictures.iter().map(encoded).collect::<Result<_>>()?,
            charts: self.charts.iter().map(drawn).collect::<Result<_>>()?,
            settings: self.settings,
            colors: colors(),
        };
        Ok(page.render()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Series;
    use crate::canvas::color;
    use crate::chart::testing::lines;

    fn page(title: &str, settings: &str) -> String {
        let line = |from: f64| Series::new("<loss>", [(1.0, from), (2.0, 1.0)]);
        let report = RunReport {
            title,
            facts: vec![("last step".to_owned(), "<2>".to_owned())],
            charts: vec![
                Chart::new("Loss", "step", "nats")
                    .series(line(2.0))
                    .series(line(3.0)),
                Chart::new("Speed", "step", "images per second").series(line(0.5)),
            ],
            settings,
            ..RunReport::default()
        };
        report.to_html().unwrap()
    }

    #[test]
    fn a_page_shows_what_it_was_given() {
        let page = page("runs/photos", "[optim]\nlr = 0.03 # warm");
        for part in [
            "<title>runs/photos</title>",
            "<h2>Loss</h2>",
            "<h2>Speed</h2>",
            "last step",
        ] {
            assert!(page.contains(part), "{part}");
        }
        assert!(
            page.contains("<pre>[optim]\nlr = 0.03 # warm</pre>"),
            "{page}"
        );
        let [falls, rises] = &lines(&page, color(0))[..] else {
            panic!("{page}");
        };
        assert!(falls[0][1] < falls[1][1] && rises[0][1] > rises[1][1]);
        assert_eq!(lines(&page, color(1)).len(), 1);
    }

    #[test]
    fn a_page_needs_nothing_else_and_is_escaped() {
        let page = page("<script>alert(1)</script>", "a = \"</pre><img src=x>\" & b");
        for part in [
            "<script",
            "<img",
            " src=\"",
            "http-equiv",
            "url(",
            "@import",
            "<link",
            "<loss>",
            "<2>",
        ] {
            assert!(!page.contains(part), "{part} in {page}");
        }
        // The name of a vocabulary, which is never loaded.
        let addresses = page.matches("http").count();
        assert_eq!(
            addresses,
            page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count()
        );
    }

    #[test]
    fn every_colour_of_a_chart_has_one_for_the_dark() {
        let mut chart = Chart::new("t", "x", "y");
        for at in 0..12 {
            chart = chart.series(Series::new("s", [(0.0, f64::from(at)), (1.0, 0.0)]).filled());
        }
        let svg = chart.svg(CHART, false).unwrap();
        let page = page("x", "");
        let mut found = 0;
        for key in ["stroke", "fill"] {
            for part in svg.split(&format!(" {key}=\"#")).skip(1) {
                let rule = format!("svg [{key}=\"#{}\"]", &part[..6]);
                assert!(page.contains(&rule), "{rule}");
                found += 1;
            }
        }
        assert!(found > 50);
        let page = RunReport::default().to_html().unwrap();
        for part in ["Settings", "class=\"facts\"", "Results", "<table", "<img"] {
            assert!(!page.contains(part), "{part}");
        }
    }

    #[test]
    fn results_and_pictures_are_in_the_page() {
        let result = serde_json::json!({
            "chosen": { "layer": "res4", "top1": 62.84 }, "train": { "images": 100 }, "test": { "images": 20 },
        });
        let image = Image::new(3, 2, (0..18).collect()).unwrap();
        let report = RunReport {
            results: vec![CardResult::of("r".as_ref(), &result).unwrap()],
            pictures: vec![Picture {
                title: "Alike".to_owned(),
                note: "a <row>".to_owned(),
                image: image.clone(),
            }],
            ..RunReport::default()
        };
        let page = report.to_html().unwrap();
        let row = "<tr><td>linear classifier on res4</td><td>top-1 62.8</td><td>-</td><td>-</td><td>100 images</td><td>20 images</td></tr>";
        assert!(page.contains(row), "{page}");
        assert!(page.contains("<h2>Alike</h2>") && page.contains("a &#60;row&#62;"));
        let (_, rest) = page.split_once("src=\"data:image/png;base64,").unwrap();
        let bytes = BASE64_STANDARD.decode(rest.split('"').next().unwrap());
        assert_eq!(Image::decode(&bytes.unwrap()).unwrap(), image);
    }
}
