//! The example runs and shows what it promises.

use benches::run_example;

#[test]
fn compose_places_named_items_with_boxes() {
    let said = run_example("compose", &[]);
    let (report, items) = said.split_once('\n').unwrap();
    assert!(report.contains("scenes: 100,"), "{said}");
    assert!(!items.is_empty());
    for item in items.lines() {
        let (name, bounds) = item.split_once(" at ").unwrap();
        assert!(["disc", "square"].contains(&name), "{said}");
        let bounds = bounds.trim_matches(['[', ']']).split(", ");
        let bounds: Vec<f32> = bounds.map(|bound| bound.parse().unwrap()).collect();
        assert!(bounds[0] < bounds[2] && bounds[1] < bounds[3], "{said}");
    }
}
