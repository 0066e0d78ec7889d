//! Owns how the records of one append are spread over produce requests.
//! Promises that their order stays and that no request has a size at which rskafka stalls, as far as that can be helped.
//! Called by `log::kafka` for every append.
//!
//! rskafka does not set TCP_NODELAY and writes a frame that does not fit its buffer of 8 KiB in two pieces, length
//! and body. The kernel then keeps back the body until the broker's kernel acknowledges the length, which it delays
//! by 40 ms - unless the body is longer than a segment (64 KiB on the loopback interface). So a request is either
//! small or large on the wire, and what would be in between is sent as several small ones.

use std::ops::RangeInclusive;

use crate::config::Compression;
use crate::log::Record;

/// Goes out in one piece: 8 KiB less the head of the request, a topic's name included.
const SMALL: usize = 7_680;

/// Longer than a segment.
const LARGE: usize = 66 * 1024;

/// Before compression; below the 1 MiB that a broker takes, with room for what does not compress.
const LARGEST: usize = 900_000;

/// Of a larger batch a sample of about this size tells enough, unless it comes out near the size in question. Snappy
/// looks no further back than 64 KiB, so a smaller sample would say less.
const SAMPLE: usize = 32 * 1024;

/// What a record and a header need beside their bytes, at most.
const RECORD_FRAME: usize = 24;
const HEADER_FRAME: usize = 6;

/// The records of an append by request, in order. A record that is larger than a request stands alone.
pub(super) fn of(records: &[Record], compression: Compression) -> Vec<&[Record]> {
    let mut requests = Vec::new();
    for most in pieces(records, LARGEST) {
        let raw: usize = most.iter().map(size).sum();
        let wire = on_the_wire(most, raw, compression);
        if *wire.end() <= SMALL || *wire.start() >= LARGE {
            requests.push(most);
        } else {
            // Fewer bytes compress less well: an eighth in reserve.
            let reserve = if compression == Compression::None { 0 } else { SMALL / 8 };
            requests.extend(pieces(most, SMALL.max(raw * (SMALL - reserve) / wire.end())));
        }
    }
    requests
}

/// Cuts where the next record would pass the limit.
fn pieces(records: &[Record], limit: usize) -> Vec<&[Record]> {
    let (mut pieces, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (position, record) in records.iter().enumerate() {
        let size = size(record);
        if position > start && bytes + size > limit {
            pieces.push(&records[start..position]);
            (start, bytes) = (position, 0);
        }
        bytes += size;
    }
    if start < records.len() {
        pieces.push(&records[start..]);
    }
    pieces
}

fn size(record: &Record) -> usize {
    let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
    let headers = record.headers.iter().map(|(name, value)| HEADER_FRAME + name.len() + value.len());
    RECORD_FRAME + length(&record.key) + length(&record.value) + headers.sum::<usize>()
}

/// The least and the most that a request of these records may take on the wire.
///
/// How well events compress varies too much to guess (by 3 to 13 in a survey of our kinds): so snappy tells, which
/// is cheap beside a round trip, and the others are bounded by their distance from it in the same survey.
fn on_the_wire(records: &[Record], raw: usize, compression: Compression) -> RangeInclusive<usize> {
    if compression == Compression::None || raw <= SMALL {
        return raw..=raw;
    }
    let of_snappy = |snappy: usize| match compression {
        Compression::None | Compression::Snappy => snappy..=snappy,
        Compression::Lz4 => snappy * 2 / 3..=snappy * 21 / 20,
        Compression::Gzip => snappy * 2 / 5..=snappy,
    };
    let every = raw / SAMPLE;
    if every > 1 {
        let sample = records.iter().step_by(every);
        let size = sample.clone().map(size).sum::<usize>().max(1);
        let guess = of_snappy(snappy(sample, size) * raw / size);
        if *guess.start() >= LARGE * 5 / 4 {
            return guess;
        }
    }
    of_snappy(snappy(records.iter(), raw))
}

/// What snappy makes of the bytes of some records.
fn snappy<'a>(records: impl Iterator<Item = &'a Record>, size: usize) -> usize {
    let mut bytes = Vec::with_capacity(size);
    for record in records {
        bytes.extend_from_slice(record.key.as_deref().unwrap_or_default());
        bytes.extend_from_slice(record.value.as_deref().unwrap_or_default());
        for (name, value) in &record.headers {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(value);
        }
    }
    snap::raw::Encoder::new().compress_vec(&bytes).map_or(size, |compressed| compressed.len())
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;

    const ALL: [Compression; 4] =
        [Compression::None, Compression::Snappy, Compression::Lz4, Compression::Gzip];

    fn record(value: Vec<u8>) -> Record {
        Record { key: Some(b"t:u".to_vec()), value: Some(value), headers: Vec::new(), timestamp: Utc::now() }
    }

    fn random(length: usize) -> Record {
        record(std::iter::repeat_with(|| fastrand::u8(..)).take(length).collect())
    }

    fn sizes(requests: &[&[Record]]) -> Vec<usize> {
        requests.iter().map(|r| r.iter().map(size).sum()).collect()
    }

    #[test]
    fn nothing_is_lost_or_moved() {
        for compression in ALL {
            for count in [0, 1, 10, 100, 1_000, 3_000] {
                let records: Vec<Record> = (0..count).map(|_| random(fastrand::usize(..1_400))).collect();
                let requests = of(&records, compression);
                assert!(requests.iter().all(|r| !r.is_empty()));
                assert_eq!(requests.concat(), records);
            }
        }
    }

    #[test]
    fn what_does_not_compress_is_small_or_large_and_never_too_large() {
        for compression in ALL {
            for count in [1, 8, 12, 60, 100, 500, 1_500, 4_000] {
                let records: Vec<Record> = (0..count).map(|_| random(700)).collect();
                for size in sizes(&of(&records, compression)) {
                    assert!(size <= LARGEST, "{compression:?} {count}: {size}");
                    assert!(size <= SMALL || size >= LARGE, "{compression:?} {count}: {size}");
                }
            }
        }
    }

    #[test]
    fn what_compresses_well_stays_together() {
        let records: Vec<Record> = (0..100).map(|_| record(b"the same again ".repeat(50))).collect();
        assert_eq!(of(&records, Compression::Snappy).len(), 1);
        assert_eq!(of(&records, Compression::None).len(), 1, "large enough as it is");
        assert!(of(&records[..50], Compression::None).len() > 1);
    }

    #[test]
    fn a_record_larger_than_a_request_stands_alone() {
        let records = [random(100), random(2_000_000), random(100)];
        assert_eq!(sizes(&of(&records, Compression::Snappy)).len(), 3);
    }
}
