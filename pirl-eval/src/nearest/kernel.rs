//! Products of 16-bit integers, a tile of queries with a panel of rows at a time.

#[cfg(target_arch = "x86_64")]
use pirl_core::Instructions;

/// Rows side by side in a panel.
pub(super) const PANEL: usize = 16;
/// Queries whose sums with a panel are kept in registers.
pub(super) const TILE: usize = 6;
/// Pairs of columns multiplied at a time: 8 KiB of a panel, which stay in the first-level cache while all
/// tiles pass.
const DEPTH: usize = 128;

/// Two columns of each row of a panel, see [`pair`].
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct PanelPair(pub(super) [i32; PANEL]);

/// Two columns of each query of a tile.
pub(super) type TilePair = [i32; TILE];

/// The products of a tile's queries with a panel's rows.
pub(super) type Sums = [[i32; PANEL]; TILE];

/// Two neighbouring columns as one number.
pub(super) fn pair([low, high]: [i16; 2]) -> i32 {
    i32::from(low as u16) | i32::from(high) << 16
}

/// Writes the products of all queries with the rows of a panel to `sums`, and the numbers of those queries that
/// have one of at least their bound to `reached`.
///
/// `panel`: its pairs of columns; `tiles`: as many of each tile, one tile after another; `sums`, `bounds`: one
/// for each tile. No sum may exceed an `i32`.
pub(super) fn scan(
    panel: &[PanelPair],
    tiles: &[TilePair],
    bounds: &[TilePair],
    sums: &mut [Sums],
    reached: &mut Vec<usize>,
) {
    #[cfg(target_arch = "x86_64")]
    if Instructions::in_use() >= Instructions::Avx2 {
        // SAFETY: the only demand is a set in use, which the processor has.
        return unsafe { x86::scan(panel, tiles, bounds, sums, reached) };
    }
    scan_by(panel, tiles, bounds, sums, reached, add_products);
}

#[inline(always)]
fn scan_by(
    panel: &[PanelPair],
    tiles: &[TilePair],
    bounds: &[TilePair],
    sums: &mut [Sums],
    reached: &mut Vec<usize>,
    add_products: impl Fn(&[PanelPair], &[TilePair], &mut Sums),
) {
    let pairs = panel.len();
    sums.fill([[0; PANEL]; TILE]);
    for start in (0..pairs).step_by(DEPTH) {
        let part = start..(start + DEPTH).min(pairs);
        for (tile, sums) in tiles.chunks_exact(pairs).zip(sums.iter_mut()) {
            add_products(&panel[part.clone()], &tile[part.clone()], sums);
        }
    }
    for (tile, (sums, bounds)) in sums.iter().zip(bounds).enumerate() {
        for (query, (sums, bound)) in sums.iter().zip(bounds).enumerate() {
            if sums.iter().fold(false, |any, sum| any | (sum >= bound)) {
                reached.push(tile * TILE + query);
            }
        }
    }
}

/// Adds to `sums` the products over some pairs of columns.
#[inline(always)]
fn add_products(panel: &[PanelPair], tile: &[TilePair], sums: &mut Sums) {
    let columns = |pair: i32| [pair as i16, (pair >> 16) as i16].map(i32::from);
    for (rows, queries) in panel.iter().zip(tile) {
        for (sums, &query) in sums.iter_mut().zip(queries) {
            let [low, high] = columns(query);
            for (sum, &row) in sums.iter_mut().zip(&rows.0) {
                let row = columns(row);
                *sum += low * row[0] + high * row[1];
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::{__m256i, _mm256_add_epi32, _mm256_madd_epi16, _mm256_set1_epi32};

    use pulp::cast;

    use super::{PanelPair, Sums, TILE, TilePair, scan_by};

    /// [`super::scan`] on a processor with AVX2, which multiplies 16-bit integers twice as fast as `f32`.
    #[target_feature(enable = "avx2")]
    pub(super) fn scan(
        panel: &[PanelPair],
        tiles: &[TilePair],
        bounds: &[TilePair],
        sums: &mut [Sums],
        reached: &mut Vec<usize>,
    ) {
        scan_by(panel, tiles, bounds, sums, reached, |panel, tile, sums| {
            add_products(panel, tile, sums);
        });
    }

    #[target_feature(enable = "avx2")]
    fn add_products(panel: &[PanelPair], tile: &[TilePair], sums: &mut Sums) {
        let mut kept: [[__m256i; 2]; TILE] = cast(*sums);
        for (rows, queries) in panel.iter().zip(tile) {
            let rows: [__m256i; 2] = cast(rows.0);
            for (kept, &query) in kept.iter_mut().zip(queries) {
                let query = _mm256_set1_epi32(query);
                for (kept, rows) in kept.iter_mut().zip(rows) {
                    *kept = _mm256_add_epi32(*kept, _mm256_madd_epi16(query, rows));
                }
            }
        }
        *sums = cast(kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_multiplying_gives_the_sums_of_the_triple_loop() {
        for (pairs, tiles) in [(1, 1), (5, 2), (DEPTH, 1), (2 * DEPTH + 3, 3)] {
            let columns = 2 * pairs;
            let integers = |seed, rows: usize| -> Vec<Vec<i16>> {
                let numbers = benches::fill(seed, rows * columns);
                let rows = numbers.chunks_exact(columns);
                rows.map(|row| row.iter().map(|x| (x * 1400.0) as i16).collect())
                    .collect()
            };
            let (rows, queries) = (integers(1, PANEL), integers(2, tiles * TILE));
            let at = |row: &[i16], k: usize| pair([row[2 * k], row[2 * k + 1]]);
            let panel: Vec<PanelPair> = (0..pairs)
                .map(|k| PanelPair(std::array::from_fn(|row| at(&rows[row], k))))
                .collect();
            let packed: Vec<TilePair> = queries
                .chunks_exact(TILE)
                .flat_map(|tile| {
                    (0..pairs).map(move |k| std::array::from_fn(|query| at(&tile[query], k)))
                })
                .collect();
            let product = |query: &[i16], row: &[i16]| -> i32 {
                let pairs = query.iter().zip(row);
                pairs.map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
            };
            let sums_of = |query: &[i16]| -> Vec<i32> {
                rows.iter().map(|row| product(query, row)).collect()
            };
            let expected: Vec<Vec<i32>> = queries.iter().map(|query| sums_of(query)).collect();
            // Every other query's bound is just reached, the others' are not.
            let bound = |query: usize| {
                let most = expected[query].iter().max().unwrap();
                most + (query % 2) as i32
            };
            let bounds: Vec<TilePair> = (0..tiles)
                .map(|tile| std::array::from_fn(|query| bound(tile * TILE + query)))
                .collect();
            let check = |sums: &[Sums], reached: &[usize]| {
                assert_eq!(expected, sums.as_flattened());
                let even: Vec<usize> = (0..tiles * TILE).step_by(2).collect();
                assert_eq!(reached, even);
            };
            let (mut sums, mut reached) = (vec![[[-1; PANEL]; TILE]; tiles], Vec::new());
            scan(&panel, &packed, &bounds, &mut sums, &mut reached);
            check(&sums, &reached);
            reached.clear();
            scan_by(
                &panel,
                &packed,
                &bounds,
                &mut sums,
                &mut reached,
                add_products,
            );
            check(&sums, &reached);
        }
    }
}
