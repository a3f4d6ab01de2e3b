//! What the losses must satisfy whatever the numbers, and the figures known for a random bank.

mod common;

use candle_core::{DType, Device, Tensor, Var};
use common::{
    Case, DATASET_SIZE, FirstBatchNce, KINDS, evaluate, evaluate_reference, loss, relative, scalar,
    tensor, unit, values,
};
use pirl_core::Ops;
use pirl_loss::{
    ContrastiveLoss, InfoNce, LossError, Nce, Negatives, Paper, cross_entropy, total_loss,
};
use proptest::prelude::*;

/// Own columns for some images of a batch.
fn some_own(b: usize, n: usize) -> Vec<Option<u32>> {
    (0..b)
        .map(|i| (n > 1 && i % 3 == 1).then_some((i * 7 % n) as u32))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    // Sizes run over the edges of the tiles (32) and of the vectors (8).
    #[test]
    fn fused_equals_reference(
        b in 1usize..70, n in 1usize..600, dim in 1usize..40, temperature in 0.05f64..2.0,
        kind in 0usize..3, shared in any::<bool>(),
    ) {
        let case = if shared {
            Case::shared(b, n, dim, some_own(b, n))
        } else {
            let m = n + 10;
            Case::per_image(b, m, dim, (0..b * n).map(|i| (i * 31 % m) as u32).collect())
        };
        let (value, gradient) = evaluate(loss(KINDS[kind], temperature).as_ref(), &case).unwrap();
        let (want, want_gradient) = evaluate_reference(KINDS[kind], temperature, &case);
        // Rounding of z = s / tau alone is 1e-6 at tau 0.05, and z is an exponent.
        prop_assert!((value - want).abs() <= 1e-5 * want.abs().max(0.1), "{value}, want {want}");
        let scale = want_gradient.iter().fold(1e-2 / b as f64, |a: f64, x| a.max(x.abs()));
        for (got, want) in gradient.iter().zip(&want_gradient) {
            prop_assert!((got - want).abs() < 2e-5 * scale, "{got}, want {want}, largest {scale}");
        }
    }

    #[test]
    fn losses_are_not_negative(b in 1usize..5, n in 1usize..50, temperature in 0.005f64..5.0) {
        let case = Case::shared(b, n, 6, some_own(b, n));
        for kind in KINDS {
            let (value, gradient) = evaluate(loss(kind, temperature).as_ref(), &case).unwrap();
            prop_assert!(value >= 0.0, "{kind}: {value}");
            prop_assert!(gradient.iter().all(|x| x.is_finite()));
        }
    }

    #[test]
    fn order_of_negatives_does_not_matter(n in 2usize..300, shift in 1usize..300) {
        let case = Case::shared(3, n, 8, vec![Some(0), None, Some(n as u32 - 1)]);
        let Negatives::Shared { rows, own } = &case.negatives else { unreachable!() };
        let shift = shift % n;
        let order: Vec<u32> = (0..n).map(|i| ((i + shift) % n) as u32).collect();
        let moved = |column: u32| ((column as usize + n - shift) % n) as u32;
        let order = Tensor::new(order, &Device::Cpu).unwrap();
        let turned = Case {
            query: case.query.clone(),
            positive: case.positive.clone(),
            negatives: Negatives::Shared {
                rows: rows.index_select(&order, 0).unwrap(),
                own: own.iter().map(|own| own.map(moved)).collect(),
            },
        };
        for kind in KINDS {
            let (a, da) = evaluate(loss(kind, 0.1).as_ref(), &case).unwrap();
            let (b, db) = evaluate(loss(kind, 0.1).as_ref(), &turned).unwrap();
            prop_assert!((a - b).abs() < 1e-5 * a, "{kind}: {a} and {b}");
            prop_assert!(relative(&da, &db) < 1e-5, "{kind}");
        }
    }
}

#[test]
fn by_the_reference_a_loss_is_the_same() {
    let dim = 9;
    let cases = [
        Case::shared(5, 40, dim, some_own(5, 40)),
        Case::shared(3, 20, dim, vec![None; 3]),
        Case::per_image(4, 30, dim, (0..4 * 11).map(|i| i * 7 % 30).collect()),
    ];
    for case in cases {
        let nce = |ops| FirstBatchNce::new(0.1, 500, ops);
        let losses = |ops| -> [Box<dyn ContrastiveLoss>; 3] {
            [
                Box::new(Paper::new(0.1).unwrap().with_ops(ops)),
                Box::new(nce(ops)),
                Box::new(InfoNce::new(0.1).unwrap().with_ops(ops)),
            ]
        };
        let constants =
            [Ops::Fast, Ops::Reference].map(|ops| nce(ops).estimated(&case).unwrap().log_z());
        assert!((constants[0] - constants[1]).abs() < 1e-5, "{constants:?}");
        for (fused, plain) in losses(Ops::Fast).iter().zip(losses(Ops::Reference)) {
            let (value, gradient) = evaluate(fused.as_ref(), &case).unwrap();
            let (want, want_gradient) = evaluate(plain.as_ref(), &case).unwrap();
            // Other code computed it, so the last bits differ in some of so many numbers.
            assert_ne!(gradient, want_gradient, "{fused:?}");
            assert!((value - want).abs() < 1e-5 * want, "{value}, want {want}");
            assert!(relative(&gradient, &want_gradient) < 1e-5, "{fused:?}");
        }
    }
}

#[test]
fn masking_a_column_equals_removing_it() {
    let (b, n, dim) = (2, 37, 8);
    let removed = 11;
    let masked = Case::shared(b, n, dim, vec![Some(removed); b]);
    let mut rows = unit(3, n, dim);
    rows.drain(removed as usize * dim..(removed as usize + 1) * dim);
    let without = Case {
        negatives: Negatives::Shared {
            rows: tensor(&rows, dim),
            own: vec![None; b],
        },
        ..Case::shared(b, n, dim, vec![None; b])
    };
    for kind in KINDS {
        let (a, da) = evaluate(loss(kind, 0.07).as_ref(), &masked).unwrap();
        let (b, db) = evaluate(loss(kind, 0.07).as_ref(), &without).unwrap();
        assert!((a / b - 1.0).abs() < 1e-6, "{kind}: {a} and {b}");
        assert!(relative(&da, &db) < 1e-6, "{kind}");
    }
}

#[test]
fn a_masked_row_may_be_the_positive_itself() {
    // The own row scores 1: were it not masked, the image would be pushed from itself.
    let dim = 8;
    let mut case = Case::shared(1, 20, dim, vec![Some(4)]);
    let Negatives::Shared { rows, .. } = &case.negatives else {
        unreachable!()
    };
    case.query = rows.narrow(0, 4, 1).unwrap().contiguous().unwrap();
    case.positive = case.query.clone();
    let (masked, _) = evaluate(loss("infonce", 0.07).as_ref(), &case).unwrap();
    let Negatives::Shared { own, .. } = &mut case.negatives else {
        unreachable!()
    };
    own[0] = None;
    let (counted, _) = evaluate(loss("infonce", 0.07).as_ref(), &case).unwrap();
    assert!(masked < 0.1 && counted > 0.6, "{masked}, {counted}");
}

#[test]
fn shared_and_per_image_agree_on_the_same_negatives() {
    let (b, n) = (40, 100);
    let shared = Case::shared(b, n, 24, vec![None; b]);
    let per_image = Case::per_image(b, n, 24, (0..b).flat_map(|_| 0..n as u32).collect());
    for kind in KINDS {
        let (x, dx) = evaluate(loss(kind, 0.07).as_ref(), &shared).unwrap();
        let (y, dy) = evaluate(loss(kind, 0.07).as_ref(), &per_image).unwrap();
        assert!((x / y - 1.0).abs() < 1e-6, "{kind}: {x} and {y}");
        assert!(relative(&dx, &dy) < 1e-5, "{kind}");
    }
}

#[test]
fn gradient_is_the_slope_of_the_value() {
    let case = Case::shared(3, 25, 5, vec![None, Some(3), None]).f64();
    let step = 1e-6;
    for kind in KINDS {
        let fixed = loss(kind, 0.2);
        let (_, gradient) = evaluate(fixed.as_ref(), &case).unwrap();
        let query = values(&case.query);
        for i in 0..query.len() {
            let at = |delta: f64| {
                let mut query = query.clone();
                query[i] += delta;
                let query = Tensor::from_vec(query, case.query.shape(), &Device::Cpu).unwrap();
                // `fixed` holds Z of the first forward, as the gradient does.
                scalar(
                    &fixed
                        .forward(&query, &case.positive, &case.negatives)
                        .unwrap(),
                )
            };
            let slope = (at(step) - at(-step)) / (2.0 * step);
            let error = (slope - gradient[i]).abs();
            assert!(
                error < 1e-7 * (1.0 + slope.abs()),
                "{kind}: {slope}, {}",
                gradient[i]
            );
        }
    }
}

#[test]
fn extreme_scores_stay_finite_and_right() {
    // Scores of -1 and 1 over a temperature of 1e-3: logits of 1000, far beyond exp's range.
    let row = |x: f32, y: f32| [x, y];
    let matrix = |rows: &[[f32; 2]]| tensor(rows.as_flattened(), 2);
    for (positive, negatives) in [
        (row(1.0, 0.0), vec![row(-1.0, 0.0), row(0.0, 1.0)]),
        (row(-1.0, 0.0), vec![row(1.0, 0.0), row(0.0, 1.0)]),
        (row(0.0, 1.0), vec![row(1.0, 0.0), row(1.0, 0.0)]),
    ] {
        let case = Case {
            query: matrix(&[row(1.0, 0.0)]),
            positive: matrix(&[positive]),
            negatives: Negatives::Shared {
                rows: matrix(&negatives),
                own: vec![None],
            },
        };
        for kind in KINDS {
            let (value, gradient) = evaluate(loss(kind, 1e-3).as_ref(), &case).unwrap();
            let (want, want_gradient) = evaluate_reference(kind, 1e-3, &case);
            // A logit of 1000 is rounded to 3e-5 in f32, and its exponential with it.
            assert!(
                (value - want).abs() < 1e-4 * want.max(1.0),
                "{kind}: {value}, want {want}"
            );
            for (got, want) in gradient.iter().zip(&want_gradient) {
                assert!(
                    (got - want).abs() < 1e-3 * want.abs().max(1.0),
                    "{kind}: {got}, {want}"
                );
            }
        }
    }
}

#[test]
fn nan_and_infinity_are_not_hidden() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut query = unit(1, 2, 4);
        query[5] = bad;
        let case = Case {
            query: tensor(&query, 4),
            ..Case::shared(2, 9, 4, vec![None; 2])
        };
        let losses: [Box<dyn ContrastiveLoss>; 3] = [
            Box::new(Paper::new(0.07).unwrap()),
            Box::new(Nce::new(0.07, DATASET_SIZE, 3.0).unwrap()),
            Box::new(InfoNce::new(0.07).unwrap()),
        ];
        for loss in losses {
            let (value, _) = evaluate(loss.as_ref(), &case).unwrap();
            assert!(!value.is_finite(), "{loss:?}: {value} from {bad}");
        }
        // No constant is estimated from what is not a number.
        assert!(names(evaluate(loss("nce", 0.07).as_ref(), &case), "log_z"));
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let case = Case::shared(150, 333, 48, some_own(150, 333));
    for kind in KINDS {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| evaluate(loss(kind, 0.07).as_ref(), &case).unwrap())
        };
        let one = run(1);
        assert!(one == run(2) && one == run(5), "{kind}");
    }
}

#[test]
fn gradients_of_a_query_used_twice_add_up() {
    let case = Case::shared(3, 20, 6, vec![None; 3]);
    let query = Var::from_tensor(&case.query).unwrap();
    let paper = Paper::new(0.07).unwrap();
    let once = evaluate(&paper, &case).unwrap().1;
    let term = || {
        paper
            .forward(&query, &case.positive, &case.negatives)
            .unwrap()
    };
    let total = total_loss(0.25, &(term() * 4.0).unwrap(), &term()).unwrap();
    let gradients = total.backward().unwrap();
    let want: Vec<f64> = once.iter().map(|x| 1.75 * x).collect();
    assert!(relative(&values(gradients.get(&query).unwrap()), &want) < 1e-6);
}

#[test]
fn bank_rows_get_no_gradient_in_either_path() {
    for dtype in [DType::F32, DType::F64] {
        let case = Case::shared(2, 5, 4, vec![None; 2]);
        let var = |t: &Tensor| Var::from_tensor(&t.to_dtype(dtype).unwrap()).unwrap();
        let Negatives::Shared { rows, own } = &case.negatives else {
            unreachable!()
        };
        let (query, positive, rows) = (var(&case.query), var(&case.positive), var(rows));
        let negatives = Negatives::Shared {
            rows: rows.as_tensor().clone(),
            own: own.clone(),
        };
        for kind in KINDS {
            let value = loss(kind, 0.07)
                .forward(&query, &positive, &negatives)
                .unwrap();
            let gradients = value.backward().unwrap();
            assert!(gradients.get(&query).is_some());
            assert!(gradients.get(&positive).is_none() && gradients.get(&rows).is_none());
        }
    }
}

#[test]
fn strided_and_untracked_inputs_give_the_same_value() {
    let case = Case::shared(6, 50, 8, some_own(6, 50));
    let strided = |t: &Tensor| t.t().unwrap().contiguous().unwrap().t().unwrap();
    let Negatives::Shared { rows, own } = &case.negatives else {
        unreachable!()
    };
    let negatives = Negatives::Shared {
        rows: strided(rows),
        own: own.clone(),
    };
    for kind in KINDS {
        let (want, _) = evaluate(loss(kind, 0.07).as_ref(), &case).unwrap();
        let (query, positive) = (strided(&case.query), strided(&case.positive));
        let got = loss(kind, 0.07)
            .forward(&query, &positive, &negatives)
            .unwrap();
        assert_eq!(scalar(&got), want, "{kind}");
    }
}

/// A random bank, as at the first step on ImageNet: 32,000 negatives out of 1,281,167 images.
/// Pairs of images have opposite positives, so that the positives' mean logit is exactly 0.
fn first_step() -> Case {
    let dim = 128;
    let half = unit(1, 8, dim);
    let positive = unit(2, 8, dim);
    let opposite: Vec<f32> = positive.iter().map(|x| -x).collect();
    Case {
        query: tensor(&[half.clone(), half].concat(), dim),
        positive: tensor(&[positive, opposite].concat(), dim),
        ..Case::shared(16, 32_000, dim, vec![None; 16])
    }
}

/// `ln E[exp(z)]` for random unit vectors: `z` is normal with variance `1 / (D tau^2)`.
fn log_mean_exp(temperature: f64) -> f64 {
    1.0 / (2.0 * 128.0 * temperature * temperature)
}

#[test]
fn first_losses_over_a_random_bank_are_those_derived() {
    let (case, k, m) = (first_step(), 32_000f64, 1_281_167usize);

    // softplus(ln S - z_p) is ln S, and each of the N shares adds p: in all 1.
    let (value, _) = evaluate(&Paper::new(0.07).unwrap(), &case).unwrap();
    let want = k.ln() + log_mean_exp(0.07) + 1.0;
    assert!(
        (want - 12.17).abs() < 0.01 && (value - want).abs() < 0.02,
        "{value}, want {want}"
    );

    // Z is M E[exp(z)] = 2.84e6, and the terms as above; eps adds K eps / (K / M) = M eps = 0.153.
    let nce = FirstBatchNce::new(0.07, m, Ops::Fast);
    let nce = nce.estimated(&case).unwrap();
    let (value, _) = evaluate(&nce, &case).unwrap();
    let want = want + m as f64 * f64::from(f32::EPSILON);
    assert!((value - want).abs() < 0.02, "{value}, want {want}");
    let z = nce.log_z().exp();
    assert!((z / 2.84e6 - 1.0).abs() < 0.02, "Z = {z}");

    let (value, _) = evaluate(&InfoNce::new(0.1).unwrap(), &case).unwrap();
    let want = k.ln() + log_mean_exp(0.1);
    assert!(
        (want - 10.76).abs() < 0.01 && (value - want).abs() < 0.02,
        "{value}, want {want}"
    );
}

#[test]
fn nce_keeps_the_constant_it_was_estimated_with() {
    let first = Case::shared(4, 30, 8, some_own(4, 30));
    let second = Case {
        query: tensor(&unit(9, 4, 8), 8),
        ..Case::shared(4, 30, 8, vec![None; 4])
    };
    let estimated = |case: &Case| {
        let nce = FirstBatchNce::new(0.07, 1000, Ops::Fast);
        nce.estimated(case).unwrap()
    };
    let nce = estimated(&first);
    let (value, gradient) = evaluate(&nce, &second).unwrap();
    let resumed = Nce::new(0.07, 1000, nce.log_z()).unwrap();
    assert_eq!(evaluate(&resumed, &second).unwrap(), (value, gradient));
    assert_ne!(evaluate(&estimated(&second), &second).unwrap().0, value);
    assert!(names(Nce::new(0.07, 1000, f64::NAN), "log_z"));
}

/// Whether a result is an error about this setting.
fn names<T>(result: Result<T, LossError>, field: &str) -> bool {
    matches!(result, Err(LossError::Setting(error)) if error.field == field)
}

#[test]
fn total_weighs_the_terms() {
    let term = |x: f32| Tensor::new(x, &Device::Cpu).unwrap();
    let total = |lambda| total_loss(lambda, &term(8.0), &term(4.0));
    assert_eq!(scalar(&total(0.5).unwrap()), 6.0);
    assert_eq!(scalar(&total(0.0).unwrap()), 4.0);
    assert_eq!(scalar(&total(1.0).unwrap()), 8.0);
    for bad in [-0.1, 1.1, f64::NAN] {
        assert!(names(total(bad), "lambda"));
    }
}

#[test]
fn bad_arguments_are_errors_that_name_them() {
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(names(Paper::new(bad), "temperature"));
        assert!(names(InfoNce::new(bad), "temperature"));
        assert!(names(Nce::new(bad, 10, 0.0), "temperature"));
    }
    assert!(names(Nce::new(0.07, 0, 0.0), "dataset_size"));

    let fails = |case: &Case| {
        let errors = KINDS.map(|kind| evaluate(loss(kind, 0.07).as_ref(), case).unwrap_err());
        errors.map(|error| error.to_string())
    };
    let good = || Case::shared(2, 5, 4, vec![None; 2]);
    let with_own = |own| Case::shared(2, 5, 4, own);
    let rows = |n, dim| tensor(&unit(3, n, dim), dim);
    let shared = |rows, own| Case {
        negatives: Negatives::Shared { rows, own },
        ..good()
    };
    for (case, message) in [
        (
            Case {
                query: rows(3, 4),
                ..good()
            },
            "positive: expected (3, 4), found [2, 4]",
        ),
        (
            Case {
                positive: rows(2, 3),
                ..good()
            },
            "positive: expected (2, 4), found [2, 3]",
        ),
        (
            Case {
                query: rows(8, 1).flatten_all().unwrap(),
                ..good()
            },
            "query: expected (B, D)",
        ),
        (
            Case {
                query: good().f64().query,
                ..good()
            },
            "positive: type f32, expected f64",
        ),
        (
            Case {
                query: rows(2, 4).to_dtype(DType::BF16).unwrap(),
                ..good()
            },
            "type bf16",
        ),
        (
            shared(rows(5, 3), vec![None; 2]),
            "shared negatives: expected rows of 4, found [5, 3]",
        ),
        (
            with_own(vec![None]),
            "own columns of shared negatives: expected 2, one an image, found 1",
        ),
        (
            with_own(vec![None, Some(5)]),
            "index 5 at position 1 is not below 5",
        ),
        (
            shared(rows(1, 4), vec![None, Some(0)]),
            "image 1 of the batch has no negatives",
        ),
        (
            shared(rows(1, 4).narrow(0, 0, 0).unwrap(), vec![None; 2]),
            "image 0 of the batch",
        ),
        (
            Case::per_image(2, 5, 4, vec![0, 1, 2]),
            "a multiple of the batch, 2, found 3",
        ),
        (
            Case::per_image(2, 5, 4, vec![0, 1, 2, 5]),
            "index 5 at position 3 is not below 5",
        ),
        (
            Case::per_image(2, 5, 4, vec![]),
            "image 0 of the batch has no negatives",
        ),
    ] {
        for error in fails(&case) {
            assert!(
                error.contains(message),
                "{error:?} does not say {message:?}"
            );
        }
    }
    let empty = rows(1, 4).narrow(0, 0, 0).unwrap();
    let empty = Case {
        query: empty.clone(),
        positive: empty,
        ..with_own(vec![])
    };
    assert!(matches!(
        Paper::new(0.07)
            .unwrap()
            .forward(&empty.query, &empty.positive, &empty.negatives),
        Err(LossError::EmptyBatch)
    ));

    let logits = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
    for (targets, message) in [
        (&[0u32][..], "targets: expected 2, one an image, found 1"),
        (&[0, 3], "targets: index 3 at position 1 is not below 3"),
    ] {
        let error = cross_entropy(&logits, targets).unwrap_err().to_string();
        assert!(
            error.contains(message),
            "{error:?} does not say {message:?}"
        );
    }
}
