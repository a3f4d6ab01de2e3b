//! The examples run and show what they promise.

use benches::run_example;

#[test]
fn own_sampler_draws_harder_negatives_and_saves_the_bank() {
    let folder = tempfile::tempdir().unwrap();
    let bank = folder.path().join("bank.safetensors");
    let said = run_example("own_sampler", &[&bank]);
    let similarity: Vec<f32> = said
        .lines()
        .take(2)
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(similarity[1] > similarity[0] + 0.05, "{said}");
    assert!(said.contains("2000 rows of norm 1.000"), "{said}");
}
