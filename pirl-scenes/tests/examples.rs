//! The example runs and shows what it promises.

use benches::run_example;

#[test]
fn compose_places_named_items_with_boxes() {
    let said = run_example("compose", &[]);
    assert!(said.contains("100"), "{said}");
    assert!(said.contains(" at ["), "{said}");
}
