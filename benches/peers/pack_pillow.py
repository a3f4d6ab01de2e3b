"""Packing as a straightforward Pillow script does it: the peer of `pirl data pack`.

A loop over the files of a folder: open, decode, shrink the shorter side to 256 pixels and encode again
with quality 95 (`resize`), or only decode, to leave broken files out (`keep`); write the bytes one after
another to one file, and where each ends to another. With PROCESSES above 1, a multiprocessing pool does
all but the writing.

Speaks lines, as pirl_torch.py: `ready`, then for each `run` the seconds that one packing took, and for
`cpu` the seconds of processor time that this process took for it.

    python pack_pillow.py FOLDER OUTPUT resize|keep PROCESSES       (pack.py starts it)
"""
import io
import multiprocessing
import pathlib
import sys
import time

from PIL import Image

SHORTER, QUALITY = 256, 95


def resize(path):
    with Image.open(path) as file:
        image = file.convert("RGB")
    width, height = image.size
    shorter = min(width, height)
    if shorter > SHORTER:
        image = image.resize((width * SHORTER // shorter, height * SHORTER // shorter), Image.BILINEAR)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def keep(path):
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as file:
        file.load()
    return data


def main():
    folder, output, work, processes = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    convert = {"resize": resize, "keep": keep}[work]
    pool = multiprocessing.Pool(processes) if processes > 1 else None

    def pack():
        start = time.perf_counter()
        paths = sorted(pathlib.Path(folder).glob("*.jpg"))
        converted = pool.imap(convert, paths, chunksize=8) if pool else map(convert, paths)
        end, ends = 0, []
        with open(output, "wb") as out:
            for data in converted:
                out.write(data)
                end += len(data)
                ends.append(end)
        pathlib.Path(output + ".ends").write_text("\n".join(map(str, ends)))
        return time.perf_counter() - start

    pack()  # the files come into the page cache, the pool starts
    print("ready", flush=True)
    cpu = 0.0
    for line in sys.stdin:
        if line.strip() == "cpu":
            print(cpu, flush=True)
            continue
        before = time.process_time()
        print(pack(), flush=True)
        cpu = time.process_time() - before
    if pool:
        pool.terminate()


if __name__ == "__main__":
    main()
