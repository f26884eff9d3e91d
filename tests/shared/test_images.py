"""Image files: every colour mode and orientation comes out as upright RGB, and hostile files are refused by name."""

import errno
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFilter
from PIL.TiffImagePlugin import TiffImageFile

from shared import images
from shared.errors import DataError
from shared.images import find_image, image_orientation, image_size_hw, read_image, read_mask
from shared.seeding import rng


def saved(tmp_path, image, name="a.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.fixture
def pillow_that_tells_the_stored_size(monkeypatch):
    """Of a TIFF, as of any other file; Pillow 13 tells the upright one."""
    setup = TiffImageFile._setup

    def stored(file):
        setup(file)
        file._size = file.tag_v2[0x0100], file.tag_v2[0x0101]

    monkeypatch.setattr(TiffImageFile, "_setup", stored)


def agree_on_orientation_and_size(tmp_path, name, orientation, options):
    """A marked corner moves to where the orientation says."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :16] = 255
    path = saved(tmp_path, Image.fromarray(pixels), name, exif=exif, **options)
    assert image_orientation(path) == image_orientation("a name", path.read_bytes()) == orientation
    upright = np.asarray(read_image(path))
    assert image_size_hw(path) == image_size_hw("a name", path.read_bytes()) == upright.shape[:2]
    assert upright.shape == ((48, 32, 3) if orientation >= 5 else (32, 48, 3))
    bottom, right = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    assert upright[-8 if bottom else 8, -8 if right else 8].min() > 200
    assert sum(upright[y, x].min() > 200 for y in (8, -8) for x in (8, -8)) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"quality": 95}),
        ("a.png", {}),
        ("a.webp", {"lossless": True}),
        ("a.tif", {}),
        ("a.tif", {"compression": "tiff_lzw"}),
    ],
)
def test_orientation_and_size_from_the_head_agree(tmp_path, name, options, orientation):
    agree_on_orientation_and_size(tmp_path, name, orientation, options)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_they_do_with_any_pillow(tmp_path, pillow_that_tells_the_stored_size, orientation):
    agree_on_orientation_and_size(tmp_path, "a.tif", orientation, {})


def test_sixteen_bit_grey_keeps_its_upper_bits(tmp_path):
    values = np.array([[0, 255, 256], [32_768, 65_279, 65_535]], dtype=np.uint16)
    image = read_image(saved(tmp_path, Image.fromarray(values)))
    assert np.asarray(image)[..., 0].tolist() == [[0, 0, 1], [128, 254, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    name = {"CMYK": "a.jpg", "YCbCr": "a.jpg", "PA": "a.tif"}.get(mode, "a.png")
    source = Image.new("LA" if mode == "PA" else mode, (5, 3))
    assert read_image(saved(tmp_path, source, name)).mode == "RGB"


def test_cmyk_keeps_its_colour(tmp_path):
    red = Image.new("RGB", (8, 8), (250, 10, 10)).convert("CMYK")
    pixel = read_image(saved(tmp_path, red, "a.jpg", quality=95)).getpixel((4, 4))
    assert pixel[0] > 220 and max(pixel[1:]) < 40


def test_transparency_is_white(tmp_path):
    pixels = np.zeros((1, 2, 4), dtype=np.uint8)
    pixels[0, 1] = (10, 20, 30, 255)
    assert np.asarray(read_image(saved(tmp_path, Image.fromarray(pixels)))).tolist() == [
        [[255, 255, 255], [10, 20, 30]]
    ]
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode=None).convert("P")
    path = saved(tmp_path, palette, "p.png", transparency=bytes([0, 255]))
    assert np.asarray(read_image(path))[0, 0].tolist() == [255, 255, 255]


def test_floating_point_is_refused(tmp_path):
    with pytest.raises(DataError, match="a.tif: image cannot be read: floating-point"):
        read_image(saved(tmp_path, Image.new("F", (3, 3)), "a.tif"))


def png_of(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_decompression_bombs_are_not_decoded(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png_of(side, side))
    for read in (read_image, image_size_hw, read_mask):
        with pytest.raises(DataError, match="bomb.png: (image|mask) cannot be read"):
            read(tmp_path / "bomb.png")


def test_the_limit_is_below_pillows_warning():
    assert images.MAX_PIXELS < Image.MAX_IMAGE_PIXELS


def test_data_read_before_is_named_in_messages(tmp_path):
    data = saved(tmp_path, Image.new("RGB", (3, 2))).read_bytes()
    assert read_image("row 5", data).size == (3, 2)
    with pytest.raises(DataError, match="^row 5: image cannot be read"):
        read_image("row 5", data[:20])


def test_a_file_is_named_once(tmp_path):
    """Python's own words, and Pillow's, name it too."""
    (tmp_path / "text.png").write_text("no image")
    said = {"absent": "No such file or directory", "text": "not an image of a known format"}
    for name, why in said.items():
        for read, kind in ((read_image, "image"), (image_size_hw, "image"), (read_mask, "mask")):
            with pytest.raises(DataError) as caught:
                read(tmp_path / f"{name}.png")
            assert str(caught.value) == f"{tmp_path / name}.png: {kind} cannot be read: {why}"


@pytest.mark.parametrize(
    ("low", "high", "kind"), [(0, 1, np.uint8), (0, 255, np.uint8), (0, 65_535, np.uint16)]
)
def test_masks_of_any_brightness_read_alike(tmp_path, low, high, kind):
    mask = np.array([[True, False, True], [False, False, True]])
    image = Image.fromarray(np.where(mask, high, low).astype(kind))
    np.testing.assert_array_equal(read_mask(saved(tmp_path, image)), mask)


def test_smoothed_empty_and_bilevel_masks(tmp_path):
    smooth = np.array([[0, 100, 127, 128, 255]], dtype=np.uint8)
    assert read_mask(saved(tmp_path, Image.fromarray(smooth))).tolist() == [[False, False, False, True, True]]
    assert not read_mask(saved(tmp_path, Image.new("L", (4, 3)))).any()
    assert read_mask(saved(tmp_path, Image.new("1", (4, 3), 1))).all()


def test_masks_of_several_channels_or_objects_are_refused(tmp_path):
    with pytest.raises(DataError, match="m.png: mask cannot be read: mode RGB"):
        read_mask(saved(tmp_path, Image.new("RGB", (3, 3)), "m.png"))
    three = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    three.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    with pytest.raises(DataError, match="more than two colours"):
        read_mask(saved(tmp_path, three, "m.png"))


def paletted(index_HW, *colours):
    image = Image.fromarray(np.array(index_HW, dtype=np.uint8))
    image.putpalette([value for colour in colours for value in colour])
    return image


def test_a_palette_counts_by_the_brightness_of_its_colours(tmp_path):
    black, white, red = (0, 0, 0), (255, 255, 255), (128, 0, 0)
    index_HW = [[0, 1, 1], [0, 0, 1]]
    inside = np.array(index_HW, dtype=bool)
    for dark, bright in ((black, white), (black, red)):
        path = saved(tmp_path, paletted(index_HW, dark, bright))
        np.testing.assert_array_equal(read_mask(path), inside)
        path = saved(tmp_path, paletted(index_HW, bright, dark))
        np.testing.assert_array_equal(read_mask(path), ~inside)
    assert not read_mask(saved(tmp_path, paletted([[1, 1]], white, black))).any()
    with pytest.raises(DataError, match=r"palette colours .* are alike bright"):
        read_mask(saved(tmp_path, paletted(index_HW, (200, 200, 200), white)))


@pytest.mark.parametrize("values", [(1, 5), (1, 255), (128, 255), (3, 5, 7)])
def test_a_map_of_labels_is_refused_whichever_of_them_is_meant(tmp_path, values):
    """Ids of objects, a border that is left open, a trimap."""
    value_HW = np.zeros((20, 30), dtype=np.uint8)
    for row, value in enumerate(values):
        value_HW[2:8, 2 + 6 * row : 7 + 6 * row] = value
    path = saved(tmp_path, Image.fromarray(value_HW), "m.png")
    with pytest.raises(DataError, match=f"m.png: .*values {', '.join(map(str, values))} fill areas"):
        read_mask(path)


def blobs(num, dtype, step=1, size=(240, 320)):
    """`num` round objects with the labels `step`, 2 * `step`, ..., side by side and on top of each other."""
    generator = rng("blobs", num, step)
    y_HW, x_HW = np.indices(size)
    value_HW = np.zeros(size, dtype)
    for label in range(1, num + 1):
        y, x, radius = generator.integers((10, 10, 8), (*size, 40))
        value_HW[(y_HW - y) ** 2 + (x_HW - x) ** 2 < radius**2] = label * step
    return value_HW


def soft(size=(240, 320), sharpness=0.02):
    """Probabilities float64 [H, W] of one object with a wavy outline, nowhere 0 or 1."""
    y_HW, x_HW = np.indices(size)
    inside_HW = 0.3 * min(size) - np.hypot(y_HW - size[0] / 2, x_HW - size[1] / 2) + 9 * np.sin(x_HW / 17)
    return 1 / (1 + np.exp(-np.clip(sharpness * inside_HW, -50, 50)))


def scaled_down(value_HW, kind):
    """Half as large, in 8 bits."""
    image = Image.fromarray(value_HW.astype(np.uint8))
    return np.asarray(image.resize((image.width // 2, image.height // 2), kind))


def decoded_jpeg(value_HW):
    """The picture with the noise that JPEG makes."""
    file = io.BytesIO()
    Image.fromarray(value_HW).save(file, "JPEG", quality=60)
    with Image.open(file) as image:
        return np.asarray(image)


LABEL_MAPS = {
    "40 instances": blobs(40, np.uint8),
    "150 classes": blobs(150, np.uint8),
    "classes and what belongs to none": np.where(blobs(1, np.uint8) > 0, 255, blobs(30, np.uint8)),
    "instances of 16 bits": blobs(60, np.uint16, 700),
    "few instances of 16 bits": blobs(3, np.uint16, 1000),
    "classes of 1000 instances": np.where(
        blobs(40, np.uint16) > 0, blobs(40, np.uint16) + np.uint16(24_000), 0
    ),
    "scaled": scaled_down(blobs(40, np.uint8), Image.Resampling.NEAREST),
}


@pytest.mark.parametrize("name", LABEL_MAPS)
def test_a_map_of_many_labels_is_refused_too(tmp_path, name):
    with pytest.raises(DataError, match="m.png: .*fill areas; which one is the object"):
        read_mask(saved(tmp_path, Image.fromarray(LABEL_MAPS[name].copy()), "m.png"))


GREY_MASKS = {
    "an outline of many greys": scaled_down(
        np.asarray(Image.fromarray(blobs(1, np.uint8) * 255).rotate(9, Image.Resampling.BICUBIC)),
        Image.Resampling.LANCZOS,
    ),
    "a blurred outline": np.asarray(
        Image.fromarray(blobs(1, np.uint8) * 255).filter(ImageFilter.GaussianBlur(4))
    ),
    "a soft mask": soft() * 255,
    "a large one": soft((900, 1200), 0.005) * 255,
    "a faint one": soft() * 40,
    "one that is sure of most": soft(sharpness=0.3) * 250 + 2,
    "one of a small grid": np.kron(soft((24, 32), 0.1) * 250 + 2, np.ones((10, 10))),
    "one of a small grid with a sharp outline": np.kron(soft((24, 32), 1) * 250 + 2, np.ones((10, 10))),
    "one of 16 bits": soft() * 65_535,
    "a large one of 16 bits": np.kron(soft((90, 120), 0.05), np.ones((8, 8))) * 65_535,
    "what JPEG left": decoded_jpeg(blobs(1, np.uint8) * 255),
}


@pytest.mark.parametrize("name", GREY_MASKS)
def test_grey_masks_of_many_values_are_read(tmp_path, name):
    grey_HW = GREY_MASKS[name].round().astype(np.uint16 if "16" in name else np.uint8)
    assert len(np.unique(grey_HW)) > images.MAX_LABELS
    found = read_mask(saved(tmp_path, Image.fromarray(grey_HW), "m.png"))
    np.testing.assert_array_equal(found, 2 * grey_HW.astype(int) >= grey_HW.max())


def test_smoothed_outlines_and_soft_masks_are_no_maps_of_labels(tmp_path):
    """The outline of a thin object is most of it; a soft mask has areas of one value, and many values."""
    thin = np.zeros((12, 12), dtype=np.uint8)
    thin[:, 4], thin[:, 5], thin[:, 6] = 128, 255, 100
    assert read_mask(saved(tmp_path, Image.fromarray(thin))).sum(axis=1).tolist() == [2] * 12
    soft = np.repeat(np.repeat(np.arange(0, 256, 10, dtype=np.uint8)[None], 4, axis=1), 4, axis=0)
    assert read_mask(saved(tmp_path, Image.fromarray(soft))).sum() == (soft >= 125).sum()


def test_a_black_jpeg_is_empty_whatever_its_noise(tmp_path):
    noise = np.full((16, 16), 2, dtype=np.uint8)
    assert not read_mask(saved(tmp_path, Image.fromarray(noise), "a.jpg")).any()
    assert read_mask(saved(tmp_path, Image.fromarray(noise), "a.png")).all()
    square = np.zeros((32, 32), dtype=np.uint8)
    square[8:24, 8:24] = 255
    found = read_mask(saved(tmp_path, Image.fromarray(square), "b.jpg", quality=60))
    np.testing.assert_array_equal(found, square > 0)


def with_exif_last(path, kind=b"eXIf"):
    """A PNG whose orientation (6) stands behind its pixels, as some tools write it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    data = {b"eXIf": exif.tobytes()[6:], b"iTXt": xmp, b"tEXt": b"date:create\0today"}[kind]
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    whole = path.read_bytes()
    path.write_bytes(whole[:-12] + chunk + whole[-12:])
    return path


@pytest.mark.parametrize(("kind", "orientation"), [(b"eXIf", 6), (b"iTXt", 6), (b"tEXt", 1)])
def test_what_stands_behind_the_pixels_turns_size_and_image_alike(tmp_path, kind, orientation):
    path = with_exif_last(saved(tmp_path, Image.new("RGB", (6, 4))), kind)
    height, width = image_size_hw(path)
    assert image_orientation(path) == orientation
    assert read_image(path).size == (width, height) == ((4, 6) if orientation == 6 else (6, 4))


@pytest.mark.parametrize("late", [False, True])
def test_the_size_of_a_png_is_told_without_its_pixels(tmp_path, monkeypatch, late):
    path = saved(tmp_path, Image.fromarray(photo(200, 210)))
    if late:
        with_exif_last(path, b"tEXt")

    def fail(self):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    assert image_size_hw(path) == (200, 210) and image_orientation(path) == 1


def photo(height, width):
    """Soft colours at several scales with hard-edged patches on top, as u8 [H, W, 3]."""
    generator = rng("photo", height, width)
    value_HW3 = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64):
        small = generator.integers(0, 256, (cells, cells, 3)).astype(np.uint8)
        value_HW3 += np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)) / 3
    for _ in range(20):
        y, x = generator.integers(0, height - 100), generator.integers(0, width - 100)
        value_HW3[y : y + generator.integers(10, 100), x : x + 50] = generator.integers(0, 256, 3)
    return value_HW3.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("size_hw", "scaled_hw"), [((900, 1200), (225, 300)), ((450, 700), (225, 350))])
def test_a_large_jpeg_decoded_smaller_gives_nearly_the_same_small_image(
    tmp_path, size_hw, scaled_hw, orientation
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(photo(*size_hw)), "a.jpg", quality=92, exif=exif)
    wanted_hw = (100, 110) if orientation == 1 else (110, 100)
    whole, smaller = read_image(path), read_image(path, at_least_hw=wanted_hw)
    assert smaller.size == (scaled_hw[::-1] if orientation == 1 else scaled_hw)
    assert smaller.width >= 2 * wanted_hw[1] and smaller.height >= 2 * wanted_hw[0]
    shrunk = [
        np.asarray(image.resize(wanted_hw[::-1], Image.Resampling.BILINEAR), int)
        for image in (whole, smaller)
    ]
    difference = np.abs(shrunk[0] - shrunk[1])
    assert difference.mean() < 1 and np.quantile(difference, 0.99) <= 4


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_what_cannot_be_decoded_smaller_comes_whole(tmp_path, name):
    path = saved(tmp_path, Image.fromarray(photo(200, 210)), name)
    whole = np.asarray(read_image(path))
    wanted_hw = (10, 10) if name == "a.png" else (101, 101)
    np.testing.assert_array_equal(np.asarray(read_image(path, at_least_hw=wanted_hw)), whole)


def test_a_name_that_no_disk_can_hold_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"aaa\.\.\.: cannot be looked for: File name too long") as told:
        find_image(tmp_path, "a" * 4_000, ("", "images"))
    assert len(str(told.value)) < 400


def test_a_file_that_the_disk_does_not_speak_of_is_refused(tmp_path, monkeypatch):
    """As where a folder may not be entered, or a network disk has lost a handle; `root` may enter any."""
    for number in (errno.EACCES, errno.ESTALE):

        def fail(self, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("pathlib.Path.stat", fail)
        with pytest.raises(DataError, match=rf"a.jpg: cannot be looked for: {os.strerror(number)}"):
            find_image(tmp_path, "a.jpg", ("images",))
        monkeypatch.undo()
