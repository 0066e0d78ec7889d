//! Owns the fields that several entities have: their names and limits.
//! Promises the same limits wherever a field stands.
//! Called by the entities of this folder.

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::domain::Input;
pub(super) use crate::domain::amount::usd;
use crate::domain::input::{Given, Names};
use crate::identifier::UserId;

pub(super) const NAME: Names = &["name"];
pub(super) const EMAIL: Names = &["email"];
pub(super) const PHONE: Names = &["phone"];
pub(super) const NOTES: Names = &["notes"];
pub(super) const OWNER: Names = &["owner_id"];
pub(super) const ACCOUNT: Names = &["account_id"];
pub(super) const DESCRIPTION: Names = &["description"];
pub(super) const STATE: Names = &["state"];
pub(super) const VALUE: Names = &["value_usd", "value"];

const LONGEST_NAME: usize = 200;
const LONGEST_NOTES: usize = 2_000;
const LONGEST_EMAIL: usize = 254;
const LONGEST_PHONE: usize = 50;

/// A name, a title, a subject.
pub(super) fn name(input: &mut Input<'_>, names: Names) -> Given<String> {
    input.text(names, LONGEST_NAME)
}

pub(super) fn notes(input: &mut Input<'_>, names: Names) -> Given<String> {
    input.text(names, LONGEST_NOTES)
}

/// Something with one `@` and no spaces; whether mail arrives is not for us to say.
pub(super) fn email(input: &mut Input<'_>) -> Given<String> {
    let given = input.text(EMAIL, LONGEST_EMAIL);
    if let Given::Value(text) = &given {
        let (local, domain) = text.split_once('@').unwrap_or_default();
        let is_address = !local.is_empty() && !domain.is_empty() && !domain.contains('@');
        if !is_address || text.contains(char::is_whitespace) {
            input.refuse(EMAIL[0], "must be an e-mail address");
            return Given::Absent;
        }
    }
    given
}

pub(super) fn phone(input: &mut Input<'_>) -> Given<String> {
    input.text(PHONE, LONGEST_PHONE)
}

pub(super) fn owner(input: &mut Input<'_>) -> Given<UserId> {
    input.identifier(OWNER)
}

/// The id of another entity. One that is no UUID is of none.
pub(super) fn id(input: &mut Input<'_>, names: Names) -> Given<Uuid> {
    match input.text(names, 64) {
        Given::Value(text) => match text.parse() {
            Ok(id) => Given::Value(id),
            Err(_) => {
                input.refuse(names[0], "must be the id of one that exists");
                Given::Absent
            }
        },
        Given::Null => Given::Null,
        Given::Absent => Given::Absent,
    }
}

/// A PATCH changes no state: it may only repeat the one there is.
pub(super) fn keep_state(
    input: &mut Input<'_>,
    object: &Map<String, Value>,
    names: Names,
    state: &str,
    path: &str,
) {
    let given = names.iter().filter_map(|name| object.get(*name));
    if given.into_iter().any(|given| given != state) {
        input.refuse(names[0], format!("is changed through POST /api/crm/{path}/{{id}}/transitions"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses() {
        let address = |text: &str| {
            let object = json!({ "email": text });
            let mut input = Input::new(object.as_object().expect("an object"));
            let _ = email(&mut input);
            input.finish().is_ok()
        };
        assert!(address("a@b.c") && address("") && address("x+y@host"));
        for bad in ["a", "@b", "a@", "a@b@c", "a b@c"] {
            assert!(!address(bad), "{bad}");
        }
    }
}
