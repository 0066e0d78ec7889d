//! Owns the adding of many miners at once.
//! Promises that a row which breaks a rule is named by its number and keeps no other row out, and one event an owner.
//! Called by the API.

use std::collections::BTreeMap;

use csv::{ByteRecord, ReaderBuilder, Trim};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Caller, CommandError, Input, Miner, NewMiner, emit, insert, miner_model, new};
use crate::db::TenantTx;
use crate::domain::FieldError;
use crate::economics::catalogue;
use crate::event::kind;
use crate::identifier::{EntityId, UserId};

/// The most rows of a batch.
pub const MOST_ROWS: usize = 1_000;

/// What every message about a whole row is filed under.
const ROW: &str = "row";

/// The fields of a miner, or why they cannot be read.
pub type Row = Result<Map<String, Value>, FieldError>;

/// What became of a batch.
#[derive(Debug)]
pub struct Imported {
    pub batch_id: EntityId,
    pub total_count: usize,
    pub failed_count: usize,
    /// One an owner, in the order in which owners first appear.
    pub event_ids: Vec<Uuid>,
    /// In the order of the rows.
    pub miner_ids: Vec<Uuid>,
    /// Every field at fault, in the order of the rows.
    pub errors: Vec<FieldError>,
}

/// Adds the miners of a batch, each row by the rules of [`super::add`]. Emits one `miner.bulk_imported` an owner:
/// `imported` and `miner_ids` are the owner's, `failed` counts the batch's rows that were refused.
///
/// # Errors
/// [`CommandError::Invalid`] if no row is good.
pub async fn import(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    batch_id: Option<&EntityId>,
    rows: &[Row],
) -> Result<Imported, CommandError> {
    let (miners, errors) = read(tx, caller, rows).await?;
    if miners.is_empty() {
        return Err(CommandError::Invalid(errors));
    }
    insert(tx, &miners).await?;
    let batch_id = batch_id.cloned().unwrap_or_else(|| Uuid::now_v7().into());
    let failed_count = rows.len() - miners.len();
    let mut event_ids = Vec::new();
    for (owner, miner_ids) in by_owner(&miners) {
        let data = json!({
            "batch_id": batch_id, "imported": miner_ids.len(), "failed": failed_count, "miner_ids": miner_ids,
        });
        event_ids.push(emit(tx, caller, kind::MINER_BULK_IMPORTED, owner, batch_id.clone(), data).await?);
    }
    let miner_ids = miners.iter().map(|miner| miner.miner_id).collect();
    Ok(Imported { batch_id, total_count: rows.len(), failed_count, event_ids, miner_ids, errors })
}

/// The miners of the good rows, and what is wrong with the others.
async fn read(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    rows: &[Row],
) -> Result<(Vec<Miner>, Vec<FieldError>), sqlx::Error> {
    let mut errors = Vec::new();
    let mut given = Vec::with_capacity(rows.len());
    for (number, row) in (1..).zip(rows) {
        match row {
            Ok(fields) => {
                let mut input = Input::new(fields);
                let new = NewMiner::read(&mut input);
                given.push((number, input, new));
            }
            Err(error) => errors.push(error.clone().of_row(number)),
        }
    }
    let models = given.iter().filter_map(|(_, _, new)| new.model.as_deref());
    let known = miner_model::find_all(tx.conn(), models).await?;
    let mut miners = Vec::with_capacity(given.len());
    for (number, mut input, new) in given {
        let model = new.model.as_deref().and_then(|name| known.get(&catalogue::normalise(name)));
        let miner = new.complete(&mut input, caller, model);
        match new::finished(input, miner) {
            Ok(miner) => miners.push(miner),
            Err(of_row) => errors.extend(of_row.into_iter().map(|error| error.of_row(number))),
        }
    }
    errors.sort_by_key(|error| error.row);
    Ok((miners, errors))
}

/// The miners of each owner; owners in the order in which they first appear.
fn by_owner(miners: &[Miner]) -> Vec<(&UserId, Vec<Uuid>)> {
    let mut place: BTreeMap<&UserId, usize> = BTreeMap::new();
    let mut owners: Vec<(&UserId, Vec<Uuid>)> = Vec::new();
    for miner in miners {
        let at = *place.entry(&miner.owner_id).or_insert(owners.len());
        match owners.get_mut(at) {
            Some((_, ids)) => ids.push(miner.miner_id),
            None => owners.push((&miner.owner_id, vec![miner.miner_id])),
        }
    }
    owners
}

/// The rows of a JSON array.
pub fn rows_of(items: &[Value]) -> Vec<Row> {
    let row =
        |item: &Value| item.as_object().cloned().ok_or_else(|| FieldError::new(ROW, "must be an object"));
    items.iter().map(row).collect()
}

/// The rows of a CSV text whose first line names the fields. Stops behind [`MOST_ROWS`]: one row more tells that there
/// are too many. Empty lines are no rows; an empty cell is a field that is not given. No field of a miner has a line break,
/// so a line is a row: a quote that is not closed costs its own row and none of the others.
///
/// # Errors
/// A header that cannot be read or names a field twice.
pub fn rows_of_csv(text: &[u8]) -> Result<Vec<Row>, FieldError> {
    let refuse = |message: String| FieldError::new("header", message);
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut lines = text.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let Some(header) = lines.next() else { return Ok(Vec::new()) };
    let names: Vec<String> = cells(header)
        .map_err(refuse)?
        .iter()
        .map(|name| std::str::from_utf8(name).map(str::to_owned))
        .collect::<Result<_, _>>()
        .map_err(|_| refuse("must be UTF-8".to_owned()))?;
    for (at, name) in names.iter().enumerate() {
        if names[..at].contains(name) {
            return Err(refuse(format!("names the column {name:?} twice")));
        }
    }
    let row = |line| row_of(&names, &cells(line).map_err(|message| FieldError::new(ROW, message))?);
    Ok(lines.take(MOST_ROWS + 1).map(row).collect())
}

/// The cells of a line.
fn cells(line: &[u8]) -> Result<ByteRecord, String> {
    // A quote that is still open swallows what follows, of which the parser says nothing.
    let probe = [line, b"\nnext"].concat();
    let mut reader =
        ReaderBuilder::new().has_headers(false).flexible(true).trim(Trim::All).from_reader(&*probe);
    let mut records = reader.byte_records();
    match (records.next(), records.next()) {
        (Some(Ok(record)), Some(_)) => Ok(record),
        (Some(Err(error)), _) => Err(error.to_string()),
        _ => Err("has a quote that is not closed; a cell has no line breaks".to_owned()),
    }
}

fn row_of(names: &[String], record: &ByteRecord) -> Row {
    if record.len() != names.len() {
        let message = format!("has {} cells, and the header has {}", record.len(), names.len());
        return Err(FieldError::new(ROW, message));
    }
    let mut fields = Map::new();
    for (name, cell) in names.iter().zip(record) {
        let text = std::str::from_utf8(cell).map_err(|_| FieldError::new(name, "must be UTF-8"))?;
        if !text.is_empty() {
            fields.insert(name.clone(), Value::from(text));
        }
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(row: &Row) -> (&str, &str) {
        row.as_ref().map_err(|e| (e.field.as_str(), e.message.as_str())).expect_err("refused")
    }

    #[test]
    fn cells_are_fields_and_empty_cells_are_not_given() {
        let text = "\u{feff}model , quantity,location\r\nS21,3,\"Hall 1, row 2\"\n\n S19 ,,\n";
        let rows = rows_of_csv(text.as_bytes()).expect("a header");
        let expected =
            [json!({"model": "S21", "quantity": "3", "location": "Hall 1, row 2"}), json!({"model": "S19"})];
        let rows: Vec<Value> = rows.into_iter().map(|row| Value::Object(row.expect("good"))).collect();
        assert_eq!(rows, expected);
    }

    #[test]
    fn a_row_that_cannot_be_read_keeps_no_other_out() {
        let rows = rows_of_csv(b"model,quantity\nS21\nS21,1,2\nS\xff,1\nS21,1\n").expect("a header");
        assert_eq!(error(&rows[0]), ("row", "has 1 cells, and the header has 2"));
        assert_eq!(error(&rows[1]), ("row", "has 3 cells, and the header has 2"));
        assert_eq!(error(&rows[2]), ("model", "must be UTF-8"));
        assert!(rows[3].is_ok() && rows.len() == 4);
    }

    #[test]
    fn a_quote_that_is_not_closed_costs_its_own_row() {
        let text =
            b"model,location\nS21,\"Hall 1\nS19j Pro,Hall 2\nS21,\"Hall \"\"3\"\"\"\r\nS21,Hall 4 \"left\"\n";
        let rows = rows_of_csv(text).expect("a header");
        assert_eq!(error(&rows[0]), ("row", "has a quote that is not closed; a cell has no line breaks"));
        let located: Vec<_> =
            rows[1..].iter().map(|row| row.as_ref().expect("good")["location"].clone()).collect();
        assert_eq!(located, ["Hall 2", "Hall \"3\"", "Hall 4 \"left\""]);
    }

    #[test]
    fn a_header_that_cannot_be_read_is_refused() {
        let refused = |text: &[u8]| rows_of_csv(text).expect_err("refused").message;
        assert_eq!(refused(b"model,model\nS21,S19\n"), "names the column \"model\" twice");
        assert_eq!(refused(b"mod\xffel\nS21\n"), "must be UTF-8");
        assert!(refused(b"model,\"location\nS21,Hall 1\n").starts_with("has a quote"));
        assert!(rows_of_csv(b"").expect("no rows").is_empty());
    }

    #[test]
    fn no_more_is_read_than_tells_that_there_are_too_many() {
        let text = format!("model\n{}", "S21\n".repeat(MOST_ROWS * 2));
        assert_eq!(rows_of_csv(text.as_bytes()).expect("rows").len(), MOST_ROWS + 1);
    }

    #[test]
    fn items_that_are_no_objects_are_named() {
        let rows = rows_of(&[json!({"model": "S21"}), json!("S21")]);
        assert!(rows[0].is_ok());
        assert_eq!(error(&rows[1]), ("row", "must be an object"));
    }
}
