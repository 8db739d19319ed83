//! The lines of a log, packed or not, one after the other in one buffer.

use std::io::{self, Cursor, ErrorKind, Read};

use flate2::read::MultiGzDecoder;
use memchr::memchr;

/// Bytes that are read at once.
const BUFFER_BYTES: usize = 256 << 10;
/// Longest line; what is longer is cut there.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// What a file begins with that gzip has packed (RFC 1952 §2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The lines of a log.
pub struct Lines {
    reader: Box<dyn Read + Send>,
    buffer: Vec<u8>,
    /// What is read and not given out yet.
    start: usize,
    end: usize,
    is_over: bool,
    /// The rest of a line that was cut.
    skips: bool,
}

impl Lines {
    /// Of what this reads, which gzip may have packed, in one piece or several.
    ///
    /// # Errors
    /// Its beginning cannot be read.
    pub fn new(mut reader: Box<dyn Read + Send>) -> io::Result<Self> {
        let mut magic = Vec::new();
        reader.by_ref().take(GZIP.len() as u64).read_to_end(&mut magic)?;
        let is_packed = magic == GZIP;
        let whole = Cursor::new(magic).chain(reader);
        let reader: Box<dyn Read + Send> =
            if is_packed { Box::new(MultiGzDecoder::new(whole)) } else { Box::new(whole) };
        Ok(Lines {
            reader,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            is_over: false,
            skips: false,
        })
    }

    /// The next line that holds anything, without its end; `None` behind the last one.
    ///
    /// # Errors
    /// It cannot be read, or not be unpacked.
    pub fn next_line(&mut self) -> io::Result<Option<&[u8]>> {
        let mut looked = self.start;
        let line = loop {
            let rest = self.buffer.get(looked..self.end).unwrap_or_default();
            if let Some(at) = memchr(b'\n', rest) {
                let line = self.start..looked + at;
                self.start = looked + at + 1;
                looked = self.start;
                if !std::mem::take(&mut self.skips) && line.end > line.start {
                    break line;
                }
                continue;
            }
            looked = self.end;
            let is_long = self.end - self.start >= LINE_BYTES_MAX;
            if self.is_over || is_long {
                let line = self.start..self.end;
                (self.start, looked) = (self.end, self.end);
                let is_cut = std::mem::replace(&mut self.skips, is_long);
                if !is_cut && line.end > line.start {
                    break line;
                }
                if self.is_over {
                    return Ok(None);
                }
                continue;
            }
            looked -= self.start;
            self.fill()?;
        };
        Ok(self.buffer.get(line).map(<[u8]>::trim_ascii_end))
    }

    /// Reads on; what is not given out yet moves to the front.
    fn fill(&mut self) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        loop {
            match self.reader.read(room) {
                Ok(0) => self.is_over = true,
                Ok(count) => self.end += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    /// Gives out a few bytes at a time.
    struct Slow(Cursor<Vec<u8>>, usize);

    impl Read for Slow {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let most = into.len().min(self.1);
            self.0.read(&mut into[..most])
        }
    }

    fn lines_of(bytes: &[u8], at_once: usize) -> io::Result<Vec<Vec<u8>>> {
        let mut lines = Lines::new(Box::new(Slow(Cursor::new(bytes.to_vec()), at_once)))?;
        let mut found = Vec::new();
        while let Some(line) = lines.next_line()? {
            found.push(line.to_vec());
        }
        Ok(found)
    }

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    proptest! {
        #[test]
        fn every_line_once(lines in prop::collection::vec("[a-z ]{0,20}[a-z]", 0..20), at_once in 1..9_usize) {
            let text = lines.join("\n\n");
            let expected: Vec<Vec<u8>> = lines.into_iter().map(String::into_bytes).collect();
            prop_assert_eq!(&lines_of(text.as_bytes(), at_once).unwrap(), &expected);
            let (first, second) = text.as_bytes().split_at(text.len() / 2);
            let pieces = [packed(first), packed(second)].concat();
            prop_assert_eq!(&lines_of(&pieces, at_once).unwrap(), &expected);
        }
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let long = "x".repeat(LINE_BYTES_MAX * 3);
        let found = lines_of(format!("a\r\n{long}\nb").as_bytes(), 65_536).unwrap();
        assert_eq!((found.len(), &*found[0], &*found[2]), (3, &b"a"[..], &b"b"[..]));
        assert!((LINE_BYTES_MAX..LINE_BYTES_MAX * 3).contains(&found[1].len()));
    }

    #[test]
    fn what_is_packed_and_cut_is_an_error() {
        let mut cut = packed(b"a\nb\n");
        cut.truncate(cut.len() - 4);
        assert!(lines_of(&cut, 7).is_err());
        assert_eq!(lines_of(b"", 7).unwrap(), Vec::<Vec<u8>>::new());
    }
}
