//! Pages as a browser shows them: Chromium, where it is installed.

use std::fs;
use std::path::Path;
use std::process::Command;

use pirl_data::Image;
use pirl_eval::{Classification, Prediction};
use pirl_report::{
    Chart, ClassesReport, FigureReport, FindingReport, Layout, MapReport, Picture, RunReport,
    Series, StudyReport, Table,
};

/// A chart with long names and bars.
fn chart(title: &str) -> Chart {
    let names = (0..6).map(|at| format!("value {at} of many"));
    let curve = |name: &str, from: f64| {
        let points = (0..6).map(|at| (f64::from(at), from + f64::from(at), 0.5));
        Series::with_deviations(name, points)
    };
    Chart::new(title, "permutations", "top-1 in %")
        .x_names(names.collect())
        .series(curve("PIRL, jigsaw", 50.0))
        .series(curve("jigsaw, covariant, with a long name", 45.0))
}

/// Every third image is taken for one of the next class.
fn classes(count: u32) -> String {
    let names: Vec<String> = (0..count).map(|at| format!("class {at}")).collect();
    let predictions = (0..12 * count).map(|image| Prediction {
        label: image / 12,
        predicted: (image / 12 + u32::from(image % 3 == 0)) % count,
        confidence: Some((image % 15) as f32 / 15.0),
    });
    let predictions: Vec<_> = predictions.collect();
    let report = ClassesReport {
        title: "runs/photos on a/long/path/to/a/pack",
        facts: vec![("classes".to_owned(), count.to_string())],
        classification: &Classification::new(&predictions, &names).unwrap(),
    };
    report.to_html().unwrap()
}

fn pages() -> [(&'static str, String); 4] {
    let facts = vec![("data".to_owned(), "a/long/path/to/a/pack".repeat(4))];
    let run = RunReport {
        title: "runs/photos",
        facts: facts.clone(),
        charts: vec![chart("Loss"), chart("Speed")],
        pictures: vec![Picture {
            title: "Wide".to_owned(),
            note: "wider than a telephone".to_owned(),
            image: Image::new(1500, 40, vec![128; 1500 * 40 * 3]).unwrap(),
        }],
        settings: "seed = 0",
        ..RunReport::default()
    };
    let cells: Vec<_> = (0..12).map(|at| format!("{at}.0 ± 0.5").into()).collect();
    let head = (0..12).map(|at| format!("column {at}")).collect();
    let study = StudyReport {
        title: "The analyses of the paper",
        facts,
        figures: vec![FigureReport {
            name: "permutations".to_owned(),
            title: "Effect of the number of patch permutations".to_owned(),
            source: "figure 9".to_owned(),
            charts: vec![chart("linear"), chart("k-NN")],
            tables: vec![Table {
                title: "linear".to_owned(),
                head,
                rows: vec![cells],
            }],
            findings: vec![FindingReport {
                claim: "More permutations do not hurt".to_owned(),
                verdict: "holds".to_owned(),
                holds: Some(true),
            }],
        }],
        settings: &"a very long line of settings ".repeat(20),
    };
    [
        ("run", run.to_html().unwrap()),
        ("study", study.to_html().unwrap()),
        ("classes", classes(10)),
        ("many-classes", classes(1000)),
    ]
}

/// A page that shows another one at a width, and says what it looks like there.
fn frame(name: &str, width: usize) -> String {
    format!(
        r#"<!doctype html><iframe id="page" src="{name}.html" style="width:{width}px;height:900px;border:0"></iframe>
<pre id="found"></pre><script>
const frame = document.getElementById("page");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const svgs = [...page.querySelectorAll("svg")];
  const shown = svgs.every(svg => svg.getBoundingClientRect().width > 200 && svg.getBoundingClientRect().right <= {width});
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const line = getComputedStyle(page.querySelector("svg polyline, svg line")).stroke;
  const loaded = frame.contentWindow.performance.getEntriesByType("resource").length;
  document.getElementById("found").textContent =
    `width=${{root.scrollWidth}} svgs=${{svgs.length}} shown=${{shown}} dark=${{dark}} back=${{getComputedStyle(page.body).backgroundColor}} loaded=${{loaded}}`;
}};
</script>"#
    )
}

fn look(browser: &str, folder: &Path, name: &str, dark: bool) -> String {
    let scheme = if dark { "0" } else { "1" };
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .args([
            "--allow-file-access-from-files",
            "--virtual-time-budget=4000",
        ])
        .arg(format!(
            "--user-data-dir={}",
            folder.join("profile").display()
        ))
        .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
        .arg(format!("file://{}", folder.join(name).display()))
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = dom.split("<pre id=\"found\">").nth(1);
    let found = found.and_then(|rest| rest.split("</pre>").next());
    found.unwrap_or_else(|| panic!("{dom}")).to_owned()
}

/// A browser, if one is installed.
fn browser() -> Option<&'static str> {
    let browsers = ["chromium", "chromium-browser", "google-chrome"];
    let works = |name: &&str| Command::new(name).arg("--version").output().is_ok();
    let found = browsers.into_iter().find(works);
    if found.is_none() {
        eprintln!("no browser is installed: nothing was checked (apt install chromium)");
    }
    found
}

#[test]
fn pages_fit_a_telephone_and_a_screen_in_light_and_dark() {
    let Some(browser) = browser() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut grounds = Vec::new();
    for (name, page) in pages() {
        fs::write(folder.path().join(format!("{name}.html")), page).unwrap();
        for (width, dark) in [(390, false), (1100, true)] {
            let file = format!("{name}-{width}.html");
            fs::write(folder.path().join(&file), frame(name, width)).unwrap();
            let found = look(browser, folder.path(), &file, dark);
            let wide = found.split(['=', ' ']).nth(1).unwrap();
            let wide: usize = wide.parse().unwrap();
            assert!(wide <= width, "{name} is {wide} pixels wide at {width}");
            for part in [
                format!(
                    "svgs={} shown=true",
                    if name == "many-classes" { 1 } else { 2 }
                ),
                format!("dark={dark}"),
                "loaded=0".to_owned(),
            ] {
                assert!(
                    found.contains(&part),
                    "{name} at {width}: {part} in {found}"
                );
            }
            grounds.push(
                found
                    .split("back=")
                    .nth(1)
                    .unwrap()
                    .split(" loaded")
                    .next()
                    .unwrap()
                    .to_owned(),
            );
        }
    }
    assert_eq!(grounds[0], grounds[2]);
    assert_ne!(grounds[0], grounds[1], "light and dark");
}

/// Moves over the map until a point is found, searches, chooses, changes the layout; says what it saw.
const VISIT: &str = r#"<!doctype html><iframe id="page" src="map.html" style="width:WIDTHpx;height:900px;border:0"></iframe>
<pre id="found"></pre><script>
const frame = document.getElementById("page");
frame.onload = () => setTimeout(() => {
  const page = frame.contentDocument, $ = id => page.getElementById(id), map = $("map");
  const view = frame.contentWindow, box = map.getBoundingClientRect();
  const point = (type, x, y, more) => map.dispatchEvent(new view.PointerEvent(type,
    { pointerId: 1, clientX: box.left + x, clientY: box.top + y, bubbles: true, ...more }));
  const inked = () => {
    const pixels = map.getContext("2d").getImageData(0, 0, map.width, map.height).data;
    let count = 0;
    for (let at = 3; at < pixels.length; at += 4) count += pixels[at] > 0;
    return count;
  };
  const seen = new Set();
  for (let y = 0; y < box.height; y += 6) for (let x = 0; x < box.width; x += 6) {
    point("pointermove", x, y);
    if (!$("tip").hidden) seen.add($("what").textContent);
  }
  const first = inked();
  $("search").value = "rings";
  $("search").dispatchEvent(new view.Event("input"));
  const said = $("said").textContent;
  $("search").value = "S/2.png";
  $("search").dispatchEvent(new view.Event("input"));
  const byName = $("said").textContent;
  point("pointerdown", 1, 1, { shiftKey: true });
  point("pointermove", box.width - 1, box.height - 1, { shiftKey: true });
  point("pointerup", box.width - 1, box.height - 1, { shiftKey: true });
  const chosen = $("said").textContent, save = $("save").disabled;
  let list = "";
  view.Blob = function (parts) { list = parts.join(""); };
  view.URL.createObjectURL = () => '#';
  view.HTMLAnchorElement.prototype.click = () => {};
  $("save").click();
  list = list.split("\n").slice(0, 2).join("|") + "|" + list.split("\n").length;
  $("layout").selectedIndex = 1;
  $("layout").dispatchEvent(new view.Event("change"));
  map.dispatchEvent(new view.KeyboardEvent("keydown", { key: "+" }));
  const loaded = view.performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length;
  document.getElementById("found").textContent =
    `fits=${page.documentElement.scrollWidth <= WIDTH} seen=${[...seen].sort().join("; ")} said=${said} by_name=${byName} chosen=${chosen} list=${list} save=${save} ink=${first >= 6 * 16} legend=${$("legend").children.length} loaded=${loaded}`;
}, 300);
</script>"#;

#[test]
fn a_map_is_looked_at_searched_and_chosen_from() {
    let Some(browser) = browser() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    for image in 0..6u8 {
        let class = images.join(["bars", "rings"][usize::from(image) % 2]);
        fs::create_dir_all(&class).unwrap();
        let shade = image::RgbImage::from_pixel(24, 24, image::Rgb([40 * image, 90, 200]));
        shade.save(class.join(format!("{image}.png"))).unwrap();
    }
    let pack = folder.path().join("pack");
    let source = pirl_data::ImageFolder::open(&images).unwrap();
    pirl_data::pack(&source, &pack, &Default::default(), &mut |_, _| {}).unwrap();
    let pack = pirl_data::Pack::open(&pack).unwrap();
    let points = [
        [0.0, 0.0],
        [1.0, 0.0],
        [2.0, 1.0],
        [0.0, 2.0],
        [1.0, 3.0],
        [3.0, 3.0f32],
    ];
    let turned = points.map(|[x, y]| [-y, x]);
    let layouts = [("t-SNE", &points), ("principal components", &turned)];
    let layouts = layouts.map(|(name, points)| Layout { name, points });
    let report = MapReport {
        title: "Pets",
        facts: Vec::new(),
        pack: &pack,
        layouts: &layouts,
    };
    fs::write(folder.path().join("map.html"), report.to_html().unwrap()).unwrap();
    for (width, dark) in [(390, true), (1100, false)] {
        let visit = VISIT.replace("WIDTH", &width.to_string());
        fs::write(folder.path().join("visit.html"), visit).unwrap();
        let found = look(browser, folder.path(), "visit.html", dark);
        let wanted = "fits=true seen=bars/0.png: bars; bars/2.png: bars; bars/4.png: bars; rings/1.png: \
                      rings; rings/3.png: rings; rings/5.png: rings said=3 found by_name=1 found \
                      chosen=1 found, 6 chosen list=path,class,number|bars/0.png,bars,0|8 save=false ink=true \
                      legend=2 loaded=0";
        assert_eq!(found, wanted);
    }
}
