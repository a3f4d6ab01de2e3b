//! What making a sample allocates once its buffers have grown: no pixels.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Samples, jpeg, picture, png};
use pirl_data::{
    DataConfig, Encoding, Image, ImageView, Pack, PackOptions, PretextConfig, Scratch, ViewConfig,
    build_pretext, pack, transform,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// The system's allocator, which remembers how many requests a watched thread made and the largest:
/// the test harness has threads of its own.
struct Watched;

thread_local! {
    static WATCHING: Cell<bool> = const { Cell::new(false) };
}

static REQUESTS: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes on to the system's allocator as it came.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if WATCHING.get() {
            REQUESTS.fetch_add(1, Ordering::SeqCst);
            LARGEST.fetch_max(layout.size(), Ordering::SeqCst);
        }
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract; the block is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// Requests made by `work`, and the largest, in bytes.
fn watch(work: impl FnOnce()) -> (usize, usize) {
    REQUESTS.store(0, Ordering::SeqCst);
    LARGEST.store(0, Ordering::SeqCst);
    WATCHING.set(true);
    work();
    WATCHING.set(false);
    (
        REQUESTS.load(Ordering::SeqCst),
        LARGEST.load(Ordering::SeqCst),
    )
}

// One test, for the counts are the whole process's.
#[test]
fn a_sample_in_the_steady_state_allocates_no_pixels() {
    let mut image = picture(224, 224);
    let mut spare = Vec::new();
    let mut operations = |image: &mut Image| {
        transform::gaussian_blur(image, 1.3, &mut spare);
        transform::brightness(image, 1.2);
        transform::contrast(image, 0.8);
        transform::saturation(image, 1.3);
        transform::hue(image, 0.1);
        transform::posterize(image, 6);
        transform::sharpness(image, 1.4, &mut spare);
        transform::solarize(image, 200);
        transform::autocontrast(image);
        transform::flip(image);
        transform::grayscale(image);
    };
    operations(&mut image);
    let mut image = picture(224, 224);
    let (requests, _) = watch(|| operations(&mut image));
    assert_eq!(requests, 0);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("photographs");
    let (width, height) = (500, 375);
    let colours = picture(width, height);
    let grey = image::GrayImage::from_fn(500, 375, |x, y| image::Luma([(x ^ y) as u8]));
    let mut grey_jpeg = std::io::Cursor::new(Vec::new());
    let format = image::ImageFormat::Jpeg;
    grey.write_to(&mut grey_jpeg, format).unwrap();
    let encoded = [
        (jpeg(&colours), Encoding::Jpeg),
        (grey_jpeg.into_inner(), Encoding::Jpeg),
        (png(&colours), Encoding::Png),
    ];
    let source = Samples {
        samples: encoded
            .map(|(bytes, encoding)| (bytes, encoding, None))
            .to_vec(),
        class_names: Vec::new(),
        objects: None,
        first: 0,
    };
    pack(&source, &path, &PackOptions::default(), &mut |_, _| {}).unwrap();
    let pack = Pack::open(&path).unwrap();
    let data = DataConfig::default();
    let view = ImageView::new(&data, &ViewConfig::default()).unwrap();
    let jigsaw = PretextConfig::default();
    let jigsaw = build_pretext(&jigsaw, &data, &ViewConfig::patch(), 0).unwrap();
    let mut decoded = pack.decode(0).unwrap();
    let mut scratch = Scratch::default();
    let mut seen = vec![0; 3 * 224 * 224];
    let mut patches = vec![0; 9 * 3 * 64 * 64];
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut views = |decoded: &Image| {
        view.apply(decoded, &mut rng, &mut scratch, &mut seen)
            .unwrap();
        jigsaw
            .apply(decoded, &mut rng, &mut scratch, &mut patches)
            .unwrap();
    };
    // Crops of all sizes, so that every buffer has grown.
    (0..200).for_each(|_| views(&decoded));
    // fast_image_resize makes its weights anew, a list for each row and column: of a view of 224
    // pixels a side and a crop of 255 that is 958, and 3 tables for each axis. It takes no buffer.
    let (requests, largest) = watch(|| views(&decoded));
    eprintln!("views: {requests} requests, {largest} bytes at most");
    assert!(requests < 958 + 32 && largest < 32 << 10);
    // zune-jpeg makes the rows of a block anew, png its window; neither takes a buffer. The image is
    // not among them.
    let few_of = [(8, 16 << 10), (8, 16 << 10), (16, 256 << 10)];
    for (index, (most, size)) in few_of.into_iter().enumerate() {
        pack.decode_into(index, &mut decoded).unwrap();
        let (requests, largest) = watch(|| pack.decode_into(index, &mut decoded).unwrap());
        eprintln!("decoding {index}: {requests} requests, {largest} bytes at most");
        assert!(requests <= most && largest <= size, "sample {index}");
    }
}
