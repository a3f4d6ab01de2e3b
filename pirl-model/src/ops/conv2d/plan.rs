//! Which input pixels and kernel taps make an output pixel, and how the work is cut up.
//!
//! Both a convolution and its gradient with respect to the input compute, for every pixel of a
//! destination image, a sum over a rectangle of source pixels and a rectangle of taps (for the
//! gradient: of the taps reordered). Destination pixels with the same rectangle of taps form a
//! class. A class has no tap on padding, so such taps cost nothing: on a 2x2 map they are 5 of 9.

use super::shape::ConvShape;
use std::ops::Range;

/// Destination coordinates on one axis that use the same taps.
pub(super) struct AxisClass {
    /// First tap, in packed order.
    tap: usize,
    /// Taps used, one after another in packed order; they meet successive source coordinates.
    count: usize,
    /// Pairs of a destination coordinate and the source coordinate under `tap`, ascending.
    places: Vec<(usize, usize)>,
}

/// A run of numbers that is contiguous in the source and in the rows of the packed weight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    /// Offset from the source pixel of a row, in numbers.
    pub(super) source: usize,
    /// First row of the packed weight, a row being the weights of one tap and source channel.
    pub(super) weight: usize,
    /// Length in numbers of the source, which is also the number of weight rows.
    pub(super) len: usize,
}

/// One destination pixel: offsets, in numbers, of its first channel and of its source rectangle from
/// those of the group's first pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) source: usize,
    pub(super) destination: usize,
}

/// A share of the destination: some rows of some images.
#[derive(Clone, Debug)]
pub(super) struct Group {
    images: Range<usize>,
    rows: Range<usize>,
}

/// The gather pattern of a convolution or of its input gradient.
pub(super) struct Plan {
    kernel: usize,
    source: (usize, usize, usize),
    destination: (usize, usize, usize),
    ys: Vec<AxisClass>,
    xs: Vec<AxisClass>,
    images: usize,
}

impl Plan {
    /// The pattern of `out` from `x`; taps keep their order.
    pub(super) fn forward(s: &ConvShape) -> Plan {
        let (oh, ow) = s.out_hw();
        let axis = |input: usize, output: usize| {
            classes(output, |o| {
                let start = o * s.stride;
                let low = s.padding.saturating_sub(start);
                let high = (input + s.padding).saturating_sub(start).min(s.kernel);
                (
                    low,
                    high.saturating_sub(low),
                    (start + low).saturating_sub(s.padding),
                )
            })
        };
        Plan {
            kernel: s.kernel,
            source: (s.h, s.w, s.c_in),
            destination: (oh, ow, s.c_out),
            ys: axis(s.h, oh),
            xs: axis(s.w, ow),
            images: s.n,
        }
    }

    /// The pattern of `dx` from `dy`; taps are in the order of [`gradient_tap`].
    pub(super) fn backward(s: &ConvShape) -> Plan {
        let (oh, ow) = s.out_hw();
        let axis = |input: usize, output: usize| {
            classes(input, |i| {
                // Tap k meets output o where o * stride + k = i + padding: k steps by the stride,
                // from the residue up, while o steps down from the quotient.
                let (quotient, residue) = ((i + s.padding) / s.stride, (i + s.padding) % s.stride);
                let all = taps_of_residue(s, residue);
                let low = (quotient + 1).saturating_sub(output);
                let high = all.min(quotient + 1);
                if low >= high {
                    return (0, 0, 0);
                }
                let first: usize = (0..residue).map(|r| taps_of_residue(s, r)).sum();
                (first + all - high, high - low, quotient + 1 - high)
            })
        };
        Plan {
            kernel: s.kernel,
            source: (oh, ow, s.c_out),
            destination: (s.h, s.w, s.c_in),
            ys: axis(s.h, oh),
            xs: axis(s.w, ow),
            images: s.n,
        }
    }

    /// Cuts the destination into groups whose source and destination fit the second-level cache
    /// together. The cut depends on the sizes alone, never on the number of threads.
    pub(super) fn groups(&self) -> Vec<Group> {
        /// Numbers of source and destination in one group: 256 KiB.
        const NUMBERS: usize = 1 << 16;
        let (h, w, _) = self.destination;
        if h * w == 0 {
            return Vec::new();
        }
        let pixels = (NUMBERS / (self.source.2 + self.destination.2).max(1)).clamp(192, 4096);
        let mut groups = Vec::new();
        if h * w >= pixels {
            // Bands of about the same height: a last one of a row or two would be mostly edges.
            let most = (pixels / w).max(1);
            let band = h.div_ceil(h.div_ceil(most));
            for image in 0..self.images {
                for start in (0..h).step_by(band) {
                    groups.push(Group {
                        images: image..image + 1,
                        rows: start..(start + band).min(h),
                    });
                }
            }
        } else {
            let images = pixels / (h * w);
            for start in (0..self.images).step_by(images) {
                groups.push(Group {
                    images: start..(start + images).min(self.images),
                    rows: 0..h,
                });
            }
        }
        groups
    }

    /// The whole destination in at most `count` parts of about the same size.
    pub(super) fn chunks(&self, count: usize) -> Vec<Vec<Group>> {
        let (h, w, _) = self.destination;
        if h * w == 0 {
            return Vec::new();
        }
        if self.images >= count {
            let cut = |chunk: usize| chunk * self.images / count;
            return (0..count)
                .map(|chunk| {
                    vec![Group {
                        images: cut(chunk)..cut(chunk + 1),
                        rows: 0..h,
                    }]
                })
                .collect();
        }
        let groups = self.groups();
        let size = groups.len().div_ceil(count).max(1);
        groups.chunks(size).map(<[Group]>::to_vec).collect()
    }

    /// The source pixels of `group`, and perhaps some between them.
    pub(super) fn source_pixels(&self, group: &Group) -> Range<usize> {
        let (h, w, _) = self.source;
        let rows = if group.images.len() == 1 {
            let used = self.ys.iter().filter(|ys| ys.count > 0).flat_map(|ys| {
                let places = ys.places.iter().filter(|(y, _)| group.rows.contains(y));
                places.map(|&(_, source)| source..source + ys.count)
            });
            let joined = used.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
            joined.unwrap_or(0..0)
        } else {
            0..h
        };
        let last = group.images.end.saturating_sub(1);
        (group.images.start * h + rows.start) * w..(last * h + rows.end) * w
    }

    /// The destination pixels of `group`.
    pub(super) fn destination_pixels(&self, group: &Group) -> Range<usize> {
        let (h, w, _) = self.destination;
        let last = group.images.end.saturating_sub(1);
        (group.images.start * h + group.rows.start) * w..(last * h + group.rows.end) * w
    }

    /// Calls `visit` with the segments and the rows of each class in `group`.
    pub(super) fn visit(&self, group: &Group, mut visit: impl FnMut(&[Segment], &[Row])) {
        let (source_h, source_w, source_c) = self.source;
        let (h, w, c) = self.destination;
        let source_start = self.source_pixels(group).start;
        let start = self.destination_pixels(group).start;
        let (mut segments, mut rows) = (Vec::new(), Vec::new());
        for ys in &self.ys {
            let first = ys.places.partition_point(|&(y, _)| y < group.rows.start);
            let last = ys.places.partition_point(|&(y, _)| y < group.rows.end);
            if first == last {
                continue;
            }
            for xs in &self.xs {
                self.segments(ys, xs, &mut segments);
                rows.clear();
                for image in group.images.clone() {
                    for &(y, source_y) in &ys.places[first..last] {
                        for &(x, source_x) in &xs.places {
                            let source = (image * source_h + source_y) * source_w + source_x;
                            rows.push(Row {
                                // A pixel without a tap has no source either.
                                source: source.saturating_sub(source_start) * source_c,
                                destination: ((image * h + y) * w + x - start) * c,
                            });
                        }
                    }
                }
                visit(&segments, &rows);
            }
        }
    }

    fn segments(&self, ys: &AxisClass, xs: &AxisClass, segments: &mut Vec<Segment>) {
        let (_, w, c) = self.source;
        segments.clear();
        if xs.count * c == 0 {
            return;
        }
        for y in 0..ys.count {
            let next = Segment {
                source: y * w * c,
                weight: ((ys.tap + y) * self.kernel + xs.tap) * c,
                len: xs.count * c,
            };
            match segments.last_mut() {
                Some(last)
                    if last.source + last.len == next.source
                        && last.weight + last.len == next.weight =>
                {
                    last.len += next.len;
                }
                _ => segments.push(next),
            }
        }
    }
}

/// The segments in parts of about `depth` numbers each.
pub(super) fn cut(segments: &[Segment], depth: usize) -> Vec<Vec<Segment>> {
    let total: usize = segments.iter().map(|segment| segment.len).sum();
    let parts = total.div_ceil(depth + depth / 4).max(1);
    let depth = total.div_ceil(parts).next_multiple_of(2);
    let (mut all, mut part, mut room) = (Vec::with_capacity(parts), Vec::new(), depth);
    for &(mut segment) in segments {
        while segment.len > 0 {
            let len = segment.len.min(room);
            part.push(Segment { len, ..segment });
            segment.source += len;
            segment.weight += len;
            segment.len -= len;
            room -= len;
            if room == 0 {
                all.push(std::mem::take(&mut part));
                room = depth;
            }
        }
    }
    // A destination without segments is a sum of nothing, which must still be written.
    if !part.is_empty() || all.is_empty() {
        all.push(part);
    }
    all
}

/// What of the segments lies in `rows` of the packed weight, in parts of at most `most` numbers.
pub(super) fn within<'a>(
    segments: &'a [Segment],
    rows: &'a Range<usize>,
    most: usize,
) -> impl Iterator<Item = Segment> + 'a {
    segments.iter().flat_map(move |segment| {
        let first = segment.weight.max(rows.start);
        let last = (segment.weight + segment.len).min(rows.end);
        (first..last).step_by(most).map(move |weight| Segment {
            source: segment.source + weight - segment.weight,
            weight,
            len: most.min(last - weight),
        })
    })
}

/// Where the input gradient's packed weight has tap `k` of an axis: grouped by the residue modulo
/// the stride, descending, so that the taps a pixel uses are neighbours.
pub(super) fn gradient_tap(s: &ConvShape, k: usize) -> usize {
    let first: usize = (0..k % s.stride).map(|r| taps_of_residue(s, r)).sum();
    first + taps_of_residue(s, k % s.stride) - 1 - k / s.stride
}

/// How many taps of an axis leave `residue` modulo the stride.
fn taps_of_residue(s: &ConvShape, residue: usize) -> usize {
    s.kernel.saturating_sub(residue).div_ceil(s.stride)
}

/// Groups `0..len` by the taps that `place` gives: `(first tap, taps, first source coordinate)`.
fn classes(len: usize, place: impl Fn(usize) -> (usize, usize, usize)) -> Vec<AxisClass> {
    let mut classes: Vec<AxisClass> = Vec::new();
    for coordinate in 0..len {
        let (tap, count, source) = place(coordinate);
        let place = (coordinate, source);
        match classes
            .iter_mut()
            .find(|c| (c.tap, c.count) == (tap, count))
        {
            Some(class) => class.places.push(place),
            None => classes.push(AxisClass {
                tap,
                count,
                places: vec![place],
            }),
        }
    }
    classes
}
