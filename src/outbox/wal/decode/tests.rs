use super::*;

/// A description of a table, as the server sends it.
fn relation(oid: u32, name: &str, columns: &[&str]) -> Vec<u8> {
    let mut message = vec![b'R'];
    message.extend(oid.to_be_bytes());
    message.extend(b"public\0");
    message.extend(name.as_bytes());
    message.extend([0, b'd']);
    message.extend((columns.len() as u16).to_be_bytes());
    for column in columns {
        message.push(0);
        message.extend(column.as_bytes());
        message.push(0);
        message.extend([0; 8]);
    }
    message
}

fn insert(oid: u32, values: &[Option<&str>]) -> Vec<u8> {
    let mut message = vec![b'I'];
    message.extend(oid.to_be_bytes());
    message.push(b'N');
    message.extend((values.len() as u16).to_be_bytes());
    for value in values {
        match value {
            Some(text) => {
                message.push(b't');
                message.extend((text.len() as u32).to_be_bytes());
                message.extend(text.as_bytes());
            }
            None => message.push(b'n'),
        }
    }
    message
}

const PAYLOAD: &str = "{\"a\": \"\u{e4}\\u0001\", \"n\": 1.0}";

/// In another order than ours, and with a column that is none of ours.
const SENT: [(&str, &str); 11] = [
    ("occurred_at", "2026-01-02 03:04:05.6789"),
    ("aggregate_id", "not asked for"),
    ("position", "42"),
    ("id", "019d3c1e-0000-7000-8000-000000000001"),
    ("aggregate_type", "miner"),
    ("event_key", "t:u"),
    ("event_type", "miner.added"),
    ("tenant_id", "t"),
    ("payload", PAYLOAD),
    ("schema_version", "1"),
    ("traceparent", ""),
];

fn columns() -> Vec<&'static str> {
    SENT.map(|(column, _)| column).to_vec()
}

fn decoder() -> Decoder {
    let mut decoder = Decoder::default();
    decoder.decode(&relation(7, "event_outbox", &columns())).expect("described");
    decoder
}

/// A row with another value in one column.
fn row_with(column: &str, value: Option<&str>) -> Vec<u8> {
    let values: Vec<Option<&str>> =
        SENT.iter().map(|&(name, text)| if name == column { value } else { Some(text) }).collect();
    insert(7, &values)
}

fn row() -> Vec<u8> {
    row_with("no column", None)
}

#[test]
fn columns_are_found_by_name() {
    let Ok(Message::Row(row)) = decoder().decode(&row()) else { panic!("a row") };
    assert_eq!((row.position, row.schema_version, row.payload.as_str()), (42, 1, PAYLOAD));
    assert_eq!((row.aggregate_type.as_str(), row.event_type.as_str()), ("miner", "miner.added"));
    let routing = (row.tenant_id.as_str(), row.event_key.as_str(), row.traceparent.as_str());
    assert_eq!(routing, ("t", "t:u", ""));
    assert_eq!(row.id.to_string(), "019d3c1e-0000-7000-8000-000000000001");
    assert_eq!(row.occurred_at.and_utc().timestamp_micros(), 1_767_323_045_678_900);
}

#[test]
fn boundaries_of_a_transaction_are_told() {
    let mut commit = vec![b'C', 0];
    commit.extend(1_u64.to_be_bytes());
    commit.extend(0x16_B374_D848_u64.to_be_bytes());
    commit.extend([0; 8]);
    let end: Lsn = "16/B374D848".parse().expect("valid");
    assert!(matches!(Decoder::default().decode(&commit), Ok(Message::Commit(lsn)) if lsn == end));
    let begin = [b"B".as_slice(), &[0; 16], &[0, 0, 2, 1]].concat();
    assert!(matches!(Decoder::default().decode(&begin), Ok(Message::Begin(513))));
}

#[test]
fn what_is_missing_is_named() {
    for missing in COLUMNS {
        let columns: Vec<&str> = columns().into_iter().filter(|c| *c != missing).collect();
        let refused = Decoder::default().decode(&relation(7, "event_outbox", &columns)).expect_err("refused");
        assert_eq!(refused, DecodeError::MissingColumn(missing));
        assert!(refused.to_string().contains(missing));
        let refused = decoder().decode(&row_with(missing, None)).expect_err("refused");
        assert_eq!(refused, DecodeError::NoValue(missing));
    }
    for (column, text) in [
        ("position", "4 2"),
        ("id", "x"),
        ("schema_version", "99999999999"),
        ("occurred_at", "infinity"),
        ("occurred_at", "02.01.2026 03:04:05"),
    ] {
        let refused = decoder().decode(&row_with(column, Some(text))).expect_err("refused");
        assert_eq!(refused, DecodeError::Unreadable(column));
    }
}

#[test]
fn other_tables_and_messages_are_passed_over() {
    let mut decoder = decoder();
    decoder.decode(&relation(8, "another", &["x"])).expect("described");
    assert!(matches!(decoder.decode(&insert(8, &[Some("1")])), Ok(Message::Other)));
    assert_eq!(decoder.decode(&insert(9, &[])).expect_err("refused"), DecodeError::UnknownTable(9));
    for kind in [b'O', b'Y', b'T', b'U', b'D', b'M', b'S', 0, 255] {
        assert!(matches!(decoder.decode(&[kind, 1, 2]), Ok(Message::Other)));
    }
}

#[test]
fn timestamps_keep_every_microsecond() {
    for (text, micros) in [
        ("1999-12-31 23:59:59", 946_684_799_000_000),
        ("2026-11-22 00:00:00.000001", 1_795_305_600_000_001),
        ("2026-11-22 00:00:00.1", 1_795_305_600_100_000),
        ("2026-11-22 00:00:00.999999", 1_795_305_600_999_999),
    ] {
        assert_eq!(timestamp(text).expect(text).and_utc().timestamp_micros(), micros);
    }
    for refused in [
        "",
        "2026-11-22",
        "2026-11-22T00:00:00",
        "2026-11-22 00:00:00.",
        "2026-11-22 00:00:00.1234567",
        "2026-13-01 00:00:00",
        "2026-11-22 24:00:00",
        "0044-03-15 00:00:00 BC",
        "10000-01-01 00:00:00",
        "2026-11-22 00:00:00+01",
        "\u{e4}\u{e4}26-11-22 00:00:00",
    ] {
        assert_eq!(timestamp(refused), None, "{refused}");
    }
}

#[test]
fn no_bytes_make_it_panic() {
    // Whole messages cut anywhere, with any byte changed, and plain noise.
    let commit = [&b"C"[..], &[1; 25]].concat();
    let whole = [relation(7, "event_outbox", &columns()), row(), commit];
    for message in &whole[..2] {
        for end in 0..message.len() {
            assert!(decoder().decode(&message[..end]).is_err(), "cut at {end}");
        }
    }
    let mut random = fastrand::Rng::with_seed(0x0068_6173_6869);
    for _ in 0..100_000 {
        let mut decoder = decoder();
        let mut message = whole[random.usize(..whole.len())].clone();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..message.len());
            message[at] = random.u8(..);
        }
        // Whatever a changed description says, the rows after it are read under it.
        let _ = decoder.decode(&message);
        let _ = decoder.decode(&row());
        let mut noise = vec![0; random.usize(..64)];
        random.fill(&mut noise);
        if let Some(kind) = noise.first_mut() {
            *kind = b"BCRIOYTUDMS"[random.usize(..11)];
        }
        let _ = decoder.decode(&noise);
    }
}
