//! Trades in pages and as a file that a spreadsheet opens.

use reqwest::header::ACCEPT;
use serde_json::{Value, json};

use super::{account, lot, submitted};
use crate::support::{TestApi, TestDb};

async fn csv(api: &TestApi, query: &str, accept: &str) -> (u16, String, String, Option<String>) {
    let request = api.client.get(api.url(&format!("/api/treasury/trades{query}"))).bearer_auth(api.token());
    let response = request.header(ACCEPT, accept).send().await.expect("an answer");
    let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (status, kind, link) = (response.status().as_u16(), header("content-type"), header("link"));
    (status, kind.unwrap_or_default(), response.text().await.expect("text"), link)
}

#[tokio::test]
async fn trades_are_listed_in_pages_and_filtered() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    account(&api).await;
    lot(&api, "10", 1).await;
    let mut all = Vec::new();
    for trade_type in ["sell", "buy", "sell", "buy", "buy"] {
        all.push(submitted(&api, json!({"trade_type": trade_type})).await);
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/api/treasury/trades?limit=2{cursor}")).await.expect(200).body;
        let rows = page["data"].as_array().expect("rows");
        assert!(rows.len() <= 2);
        seen.extend(rows.iter().map(|row| row["trade_id"].as_str().expect("an id").to_owned()));
        match &page["next"] {
            Value::String(next) => cursor = format!("&cursor={next}"),
            _ => break,
        }
    }
    assert_eq!(seen, all);
    let count = async |query: &str| {
        let page = api.get(&format!("/api/treasury/trades?{query}")).await.expect(200).body;
        page["data"].as_array().expect("rows").len()
    };
    assert_eq!(count("trade_type=sell").await, 2);
    assert_eq!(count("state=submitted").await, 5);
    assert_eq!(count("state=executed").await, 0);
    assert_eq!(count("from=2999-01-01T00:00:00Z").await, 0);
    assert_eq!(count("to=2999-01-01T00:00:00Z").await, 5);
    for (query, field) in [
        ("state=done", "state"),
        ("trade_type=swap", "trade_type"),
        ("from=yesterday", "from"),
        ("limit=0", "limit"),
        ("cursor=x", "cursor"),
        ("format=xml", "format"),
    ] {
        assert_eq!(api.get(&format!("/api/treasury/trades?{query}")).await.expect(400).fields(), [field]);
    }
}

#[tokio::test]
async fn no_text_of_a_user_becomes_a_formula() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    account(&api).await;
    lot(&api, "10", 1).await;
    let notes = ["=HYPERLINK(\"http://x\")", "@SUM(A1)", "+1+1", "-1+1", "plain, \"quoted\"", "-5"];
    for notes in notes {
        submitted(&api, json!({"amount": "0.5", "notes": notes})).await;
    }
    let (status, kind, text, link) = csv(&api, "", "text/csv").await;
    assert_eq!((status, kind.as_str(), link), (200, "text/csv; charset=utf-8", None));
    let mut reader = text.split("\r\n");
    let header: Vec<&str> = reader.next().expect("a header").split(',').collect();
    assert_eq!((header[0], header[header.len() - 1]), ("trade_id", "notes"));
    for cell in ["'=HYPERLINK", "'@SUM(A1)", "'+1+1", "'-1+1", "\"plain, \"\"quoted\"\"\"", ",-5\r\n"] {
        assert!(text.contains(cell), "{cell} in {text}");
    }
    assert!(!text.contains(",=") && !text.contains(",\"=") && !text.contains(",@") && !text.contains(",+"));
    assert!(text.contains(",50000000,"), "numbers are numbers");

    let (_, kind, by_format, _) = csv(&api, "?format=csv", "application/json").await;
    assert_eq!((kind.as_str(), &by_format), ("text/csv; charset=utf-8", &text));
    let (_, kind, ..) = csv(&api, "?format=json", "text/csv").await;
    assert_eq!(kind, "application/json");
    let (_, _, page, link) = csv(&api, "?format=csv&limit=2&state=submitted", "*/*").await;
    assert_eq!(page.lines().count(), 3);
    let rest = link.expect("a link to the rest");
    assert!(rest.contains("&state=submitted"), "{rest}");
    let query = rest.split(['<', '>']).nth(1).expect("an address").split_once("trades").expect("a path").1;
    let (_, _, rest, _) = csv(&api, query, "*/*").await;
    assert_eq!(rest.lines().count(), 1 + notes.len() - 2);
}
