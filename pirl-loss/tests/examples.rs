//! The examples run and show what they promise.

use benches::run_example;

#[test]
fn every_loss_pulls_views_to_their_row() {
    let said = run_example("compare_losses", &[]);
    let number = |line: &str, key: &str| -> f32 {
        let mut words = line.split(' ').skip_while(|word| *word != key);
        words.nth(1).unwrap().parse().unwrap()
    };
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 9, "{said}");
    for loss in lines.chunks(3) {
        let (first, last) = (loss[0], loss[2]);
        assert!(number(last, "loss") < number(first, "loss"), "{said}");
        assert!(number(last, "own") > number(first, "own") + 0.2, "{said}");
    }
}
