//! A map with what goes beside it: outliers and near duplicates, as pictures and by name.

use std::path::Path;

use pirl_data::Pack;
use pirl_eval::{FeatureMap, ImageName, Neighbour, silhouette};
use serde_json::{Value, json};

use crate::error::Result;
use crate::file::{write, write_png};
use crate::map_report::{Layout, MapReport};
use crate::neighbours::neighbour_sheet;

const PAGE: &str = "map.html";
const PICTURE: &str = "map.png";
/// Images on a sheet of outliers or near duplicates.
const SHOWN: usize = 24;

/// A map of the images of a pack by the features of a layer.
#[derive(Clone, Debug)]
pub struct MapPages<'a> {
    /// Of the page.
    pub title: &'a str,
    /// The layer's name.
    pub layer: &'a str,
    /// The images.
    pub pack: &'a Pack,
    /// Where they lie.
    pub map: &'a FeatureMap,
    /// Images are near duplicates where the cosine of their features is at least this.
    pub near_duplicates: f32,
}

/// What [`MapPages::write`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct MapSummary {
    /// How far the classes lie apart: [`silhouette`].
    pub silhouette: Option<f64>,
    /// Pairs of near duplicates.
    pub near_duplicates: usize,
    /// All of it as JSON: `silhouette`, `explained`, `outliers`, `near_duplicates`, `page`, `picture`.
    pub result: Value,
}

impl MapPages<'_> {
    /// Writes into `folder` the page `map.html`, its picture `map.png` and, where there are any,
    /// `outliers.png` and `near_duplicates.png`.
    ///
    /// # Errors
    /// Those of [`MapReport::to_html`] and [`neighbour_sheet`]; [`ReportError::Io`](crate::ReportError::Io).
    pub fn write(&self, folder: &Path) -> Result<MapSummary> {
        let Self { pack, map, .. } = self;
        let labels: Vec<_> = (0..pack.len()).map(|image| pack.label(image)).collect();
        let apart = silhouette(&map.tsne, &labels);
        let fact = |name: &str, value: String| (name.to_owned(), value);
        let explained = 100.0 * map.explained.iter().sum::<f64>();
        let mut facts = vec![
            fact("images", pack.len().to_string()),
            fact("layer", self.layer.to_owned()),
            fact("variance of two components", format!("{explained:.0} %")),
        ];
        facts.extend(apart.map(|apart| fact("silhouette of the classes", format!("{apart:.3}"))));
        let layouts = [("t-SNE", &map.tsne), ("principal components", &map.pca)];
        let layouts = layouts.map(|(name, points)| Layout { name, points });
        let report = MapReport {
            title: self.title,
            facts,
            pack,
            layouts: &layouts,
        };
        write(&folder.join(PAGE), report.to_html()?.as_bytes())?;
        write_png(&folder.join(PICTURE), &report.picture()?)?;

        let outliers = map.outliers(SHOWN);
        let beside = outliers
            .iter()
            .map(|image| &map.neighbours[*image as usize]);
        let beside: Vec<Vec<Neighbour>> = beside.cloned().collect();
        self.sheet(&folder.join("outliers.png"), &outliers, &beside)?;
        let duplicates = map.near_duplicates(self.near_duplicates);
        let shown = duplicates.iter().take(SHOWN);
        let (first, second): (Vec<u32>, Vec<_>) =
            shown.map(|(first, second)| (*first, vec![*second])).unzip();
        self.sheet(&folder.join("near_duplicates.png"), &first, &second)?;

        let names = outliers.iter().map(|image| *image as usize);
        let names: Vec<Value> = names
            .map(|image| json!(ImageName::of(pack, image)))
            .collect();
        let pair = |(first, second): &(u32, Neighbour)| {
            let names = [*first as usize, second.index].map(|image| pack.name(image));
            json!({ "images": [first, second.index], "names": names, "cosine": second.cosine })
        };
        Ok(MapSummary {
            silhouette: apart,
            near_duplicates: duplicates.len(),
            result: json!({
                "silhouette": apart,
                "explained": map.explained,
                "outliers": names,
                "near_duplicates": duplicates.iter().map(pair).collect::<Vec<_>>(),
                "page": PAGE,
                "picture": PICTURE,
            }),
        })
    }

    /// Draws images beside those that are like them, if there are any.
    fn sheet(&self, path: &Path, images: &[u32], beside: &[Vec<Neighbour>]) -> Result<()> {
        if images.is_empty() {
            return Ok(());
        }
        let sheet = neighbour_sheet(self.pack, images, self.pack, beside)?;
        write_png(path, &sheet)
    }
}
