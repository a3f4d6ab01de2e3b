//! What a run's features make of images, for its page and for TensorBoard.

use std::collections::BTreeMap;
use std::path::Path;

use pirl_data::Pack;
use pirl_eval::{Distances, FeatureMap, Neighbour, draw_images, silhouette};

use crate::error::Result;
use crate::invariance::invariance_charts;
use crate::map_report::{Layout, MapReport};
use crate::neighbours::neighbour_sheet;
use crate::run_report::{Picture, RunReport};
use crate::tensorboard::EventFile;

/// Images whose neighbours are drawn.
const QUERIES: usize = 8;

/// What the features of a run make of the images of a pack.
#[derive(Clone, Debug)]
pub struct Look<'a> {
    /// Where features are read.
    pub layer: &'a str,
    /// The images.
    pub pack: &'a Pack,
    /// The numbers of those on the map.
    pub shown: &'a [u32],
    /// The map of these.
    pub map: &'a FeatureMap,
    /// How far changes move the features of the run, and of others after it, by name.
    pub distances: &'a [(String, BTreeMap<String, Distances>)],
    /// Says whose neighbours are drawn.
    pub seed: u64,
}

impl Look<'_> {
    /// Adds charts of the distances, neighbours of some images and the map to the page of a run, and the
    /// same to TensorBoard's events in `folder`, after step `done`.
    ///
    /// # Errors
    /// Those of [`invariance_charts`], [`neighbour_sheet`] and [`MapReport::picture`];
    /// [`ReportError::Io`](crate::ReportError::Io).
    pub fn add_to(&self, report: &mut RunReport<'_>, folder: &Path, done: u64) -> Result<()> {
        let pictures = [self.neighbours()?, self.map()?];
        report.charts.extend(invariance_charts(self.distances)?);
        let mut events = EventFile::create(folder, done)?;
        for Picture { title, image, .. } in &pictures {
            events.image(done, &format!("images/{}", title.to_lowercase()), image)?;
        }
        report.pictures.extend(pictures);
        for (change, found) in self.distances.iter().take(1).flat_map(|(_, found)| found) {
            events.histogram(done, &format!("invariance/{change}"), &found.values)?;
        }
        let nearest = self.map.neighbours.iter().filter_map(|found| found.first());
        let cosines: Vec<f64> = nearest.map(|found| f64::from(found.cosine)).collect();
        events.histogram(done, "cosine/nearest_neighbour", &cosines)
    }

    fn neighbours(&self) -> Result<Picture> {
        let Self {
            layer, pack, shown, ..
        } = self;
        let rows = draw_images(shown.len(), QUERIES, self.seed);
        let queries: Vec<u32> = rows.iter().map(|row| shown[*row as usize]).collect();
        let neighbours = rows.iter().map(|row| {
            let found = self.map.neighbours[*row as usize].iter();
            let of_pack = |found: &Neighbour| Neighbour {
                index: shown[found.index] as usize,
                ..*found
            };
            found.map(of_pack).collect()
        });
        let neighbours: Vec<Vec<Neighbour>> = neighbours.collect();
        let drawn = shown.len();
        Ok(Picture {
            title: "Neighbours".to_owned(),
            note: format!(
                "Images, and those of {drawn} whose features at {layer} have the highest cosine."
            ),
            image: neighbour_sheet(pack, &queries, pack, &neighbours)?,
        })
    }

    fn map(&self) -> Result<Picture> {
        let images = self.pack.select(self.shown)?;
        let points = &self.map.tsne;
        let labels: Vec<_> = (0..images.len()).map(|image| images.label(image)).collect();
        let apart = silhouette(points, &labels).map_or(String::new(), |apart| {
            format!(" Silhouette of the classes {apart:.3}.")
        });
        let picture = MapReport {
            title: "",
            facts: vec![],
            pack: &images,
            layouts: &[Layout {
                name: "t-SNE",
                points,
            }],
        };
        let (layer, drawn) = (self.layer, self.shown.len());
        Ok(Picture {
            title: "Map".to_owned(),
            note: format!(
                "t-SNE of the features at {layer} of {drawn} images, in the colours of their classes.{apart}"
            ),
            image: picture.picture()?,
        })
    }
}
