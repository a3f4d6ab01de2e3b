//! The parts of a cross-validation.

/// The fold of each sample: scikit-learn's `StratifiedKFold` without shuffling. Every fold gets its
/// share of both classes, each in the order of the samples.
pub(super) fn stratified(positive: &[bool], folds: usize) -> Vec<usize> {
    // The classes are numbered by first appearance; the shares are dealt from the sorted labels.
    let first = positive.first().copied().unwrap_or_default();
    let of_first = positive.iter().filter(|label| **label == first).count();
    let mut shares = vec![[0; 2]; folds];
    for place in 0..positive.len() {
        shares[place % folds][usize::from(place >= of_first)] += 1;
    }
    let mut next = [0; 2];
    positive
        .iter()
        .map(|label| {
            let class = usize::from(*label != first);
            while shares[next[class]][class] == 0 {
                next[class] += 1;
            }
            shares[next[class]][class] -= 1;
            next[class]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_are_those_of_scikit_learn() {
        // y = [0, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0]
        // [f for i in range(11) for f, (_, t) in enumerate(StratifiedKFold(3).split(y, y)) if i in t]
        let y = [0, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0].map(|label| label == 1);
        assert_eq!(stratified(&y, 3), [0, 0, 1, 0, 0, 1, 1, 1, 2, 2, 2]);
        // y = [1, 0, 0, 0, 1, 1, 0]
        let y = [1, 0, 0, 0, 1, 1, 0].map(|label| label == 1);
        assert_eq!(stratified(&y, 2), [0, 0, 0, 1, 0, 1, 1]);
    }
}
