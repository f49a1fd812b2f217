//! Pictures, as far as their first bytes say: the format and the size. Nothing is decoded.

use imagesize::ImageType;

/// The format and the size of a picture, read from its own bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHead {
    pub media_type: &'static str,
    pub width: u32,
    pub height: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoImage {
    #[error("must be a PNG, JPEG, WebP or GIF picture")]
    Unknown,
    #[error("cannot be read as the {0} that it begins as")]
    Broken(&'static str),
}

impl ImageHead {
    /// The format by the first bytes. `None`: none that models read.
    pub fn media_type(first: &[u8]) -> Option<&'static str> {
        Some(match imagesize::image_type(first).ok()? {
            ImageType::Png => "image/png",
            ImageType::Jpeg => "image/jpeg",
            ImageType::Webp => "image/webp",
            ImageType::Gif => "image/gif",
            _ => return None,
        })
    }

    pub fn read(picture: &[u8]) -> Result<Self, NoImage> {
        let media_type = Self::media_type(picture).ok_or(NoImage::Unknown)?;
        let broken = NoImage::Broken(media_type);
        let size = imagesize::blob_size(picture).map_err(|_| broken)?;
        let side = |n: usize| u32::try_from(n).ok().filter(|n| *n > 0).ok_or(broken);
        Ok(Self { media_type, width: side(size.width)?, height: side(size.height)? })
    }

    /// The longer side.
    pub fn side(&self) -> u32 {
        self.width.max(self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_what_its_bytes_say() {
        let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x03\x20\0\0\x02\x58\x08\x06\0\0\0";
        let found = ImageHead { media_type: "image/png", width: 800, height: 600 };
        assert_eq!(ImageHead::read(png), Ok(found));
        let gif = b"GIF89a\x0a\0\x14\0\0\0\0";
        let found = ImageHead { media_type: "image/gif", width: 10, height: 20 };
        assert_eq!(ImageHead::read(gif), Ok(found));
        let jpeg = b"\xff\xd8\xff\xe0\0\x04ab\xff\xc0\0\x11\x08\0\x10\0\x20\x03";
        let found = ImageHead { media_type: "image/jpeg", width: 32, height: 16 };
        assert_eq!(ImageHead::read(jpeg), Ok(found));
        let mut webp = b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0".to_vec();
        webp.extend([0x1f, 0, 0, 0x0f, 0, 0]);
        let found = ImageHead { media_type: "image/webp", width: 32, height: 16 };
        assert_eq!(ImageHead::read(&webp), Ok(found));
        for (what, expected) in [
            (&b"<svg xmlns='http://www.w3.org/2000/svg'/>"[..], NoImage::Unknown),
            (b"<html><script>", NoImage::Unknown),
            (b"%PDF-1.7", NoImage::Unknown),
            (b"BM\0\0", NoImage::Unknown),
            (b"", NoImage::Unknown),
            (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0", NoImage::Broken("image/png")),
            (b"GIF89a\0\0\x14\0\0\0\0", NoImage::Broken("image/gif")),
            (b"\xff\xd8\xff\xe0\0\x08abcdef", NoImage::Broken("image/jpeg")),
        ] {
            assert_eq!(ImageHead::read(what), Err(expected), "{what:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_too_strange(first in 0..5_usize, rest: Vec<u8>) {
            let begins: [&[u8]; 5] = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF....WEBPVP8"];
            let _ = ImageHead::read(&[begins[first], &rest].concat());
        }
    }
}
