//! The example runs and leaves what it promises.

use benches::run_example;

#[test]
fn report_leaves_a_page_its_charts_and_events() {
    let folder = tempfile::tempdir().unwrap();
    run_example("report", &[&folder.path()]);
    let begins = |name: &str, with: &[u8]| {
        let bytes = std::fs::read(folder.path().join(name)).unwrap();
        assert!(bytes.starts_with(with), "{name}");
    };
    begins("report.html", b"<!");
    begins("loss.png", b"\x89PNG");
    begins("loss.svg", b"<svg");
    let files = std::fs::read_dir(folder.path()).unwrap();
    let events = files.filter(|file| {
        let name = file.as_ref().unwrap().file_name();
        name.to_string_lossy().contains("tfevents")
    });
    assert_eq!(events.count(), 1);
}
