//! Hostile documents, by hand and by chance. What honest guests write is tested with real interpreters in `tests/guest`.

use std::sync::Arc;

use arrow_array::{Float64Array, NullArray, RecordBatch, StringArray};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Schema};
use ciborium::Value as Cbor;
use proptest::prelude::*;

use super::*;

fn text(text: &str) -> Cbor {
    Cbor::Text(text.to_owned())
}

fn bytes(value: &Cbor) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

/// A document whose `result` is `value`.
fn with_result(value: Cbor) -> Vec<u8> {
    let names = Cbor::Map(vec![(text("result"), value)]);
    bytes(&Cbor::Map(vec![(text("v"), 1.into()), (text("names"), names), (text("notes"), Cbor::Array(vec![]))]))
}

fn result_of(value: Cbor) -> Result<Value, Error> {
    decode(&with_result(value), &Limits::default()).map(|document| document.result.unwrap())
}

fn object(parts: Vec<Cbor>) -> Cbor {
    Cbor::Tag(TAG_OBJECT, Box::new(Cbor::Array(parts)))
}

fn ipc(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

fn small_table() -> Vec<u8> {
    let schema = Schema::new(vec![Field::new("a", DataType::Float64, true), Field::new("b", DataType::Utf8, true)]);
    let numbers = Float64Array::from(vec![Some(1.5), None, Some(f64::INFINITY)]);
    let words = StringArray::from(vec![Some("x"), Some(""), None]);
    ipc(&RecordBatch::try_new(Arc::new(schema), vec![Arc::new(numbers), Arc::new(words)]).unwrap())
}

fn arrow(stream: Vec<u8>) -> Cbor {
    object(vec![text("arrow"), text("frame"), Cbor::Bytes(stream)])
}

/// The bytes of a document that ends with `tail` in place of its result.
fn with_tail(tail: &[u8]) -> Vec<u8> {
    let mut document = b"\xa2\x61v\x01\x65names\xa1\x66result".to_vec();
    document.extend_from_slice(tail);
    document
}

#[test]
fn empty_document_is_a_document() {
    assert_eq!(decode(b"", &Limits::default()).unwrap(), Document::default());
}

#[test]
fn over_limit_document_says_its_limit() {
    let document = bytes(&Cbor::Map(vec![(text("v"), 1.into()), (text("over_limit"), 16.into())]));
    assert_eq!(decode(&document, &Limits::default()).unwrap().over_limit, Some(16));
}

#[test]
fn plain_values_come_back_as_they_are() {
    let value = result_of(Cbor::Array(vec![Cbor::Null, true.into(), (-5).into(), 2.5.into(), text("é")])).unwrap();
    let expected = vec![Value::Null, Value::Bool(true), Value::Int(-5), Value::Float(2.5), Value::Str("é".into())];
    assert_eq!(value, Value::List(expected));
}

#[test]
fn bignums_keep_every_digit() {
    let bignum = |tag, bytes: &[u8]| result_of(Cbor::Tag(tag, Box::new(Cbor::Bytes(bytes.to_vec())))).unwrap();
    assert_eq!(bignum(2, &[1, 0, 0, 0, 0, 0, 0, 0, 0]), Value::Int(1 << 64));
    assert_eq!(bignum(3, &[0xff; 16]), Value::BigInt("-340282366920938463463374607431768211456".into()));
}

#[test]
fn lengths_that_lie_are_refused_before_allocation() {
    let tails: [&[u8]; 7] = [
        b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",             // bytes
        b"\x7b\x00\x00\x00\xff\xff\xff\xff\xff",             // text
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",             // list
        b"\xbb\x00\xff\xff\xff\xff\xff\xff\xff",             // map
        b"\xc2\x5b\x00\x00\x00\x10\x00\x00\x00\x00",         // bignum
        b"\xd8\x28\x82\x81\x01\xd8\x56\x5a\xff\xff\xff\xff", // typed array
        b"\x44abc",                                          // one byte short
    ];
    for tail in tails {
        let error = decode(&with_tail(tail), &Limits::default()).unwrap_err();
        assert_eq!(error.code(), "result-malformed", "{tail:x?}: {error}");
    }
}

#[test]
fn duplicate_keys_are_refused() {
    let error = result_of(Cbor::Map(vec![(text("a"), 1.into()), (text("a"), 2.into())])).unwrap_err();
    assert!(error.to_string().ends_with("a key comes twice"), "{error}");
}

#[test]
fn keys_that_are_not_text_are_refused() {
    assert!(result_of(Cbor::Map(vec![(1.into(), 1.into())])).is_err());
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    let error = decode(&with_tail(b"\x62\xff\xfe"), &Limits::default()).unwrap_err();
    assert!(error.to_string().ends_with("text is not UTF-8"), "{error}");
}

#[test]
fn indefinite_lengths_and_unknown_tags_are_refused() {
    for tail in [&b"\x9f\x01\xff"[..], b"\x7f\x61a\xff", b"\xd9\xd9\xf7\x01", b"\xf7", b"\xff"] {
        assert!(decode(&with_tail(tail), &Limits::default()).is_err(), "{tail:x?}");
    }
}

#[test]
fn bytes_after_the_document_are_refused() {
    let mut document = with_result(Cbor::Null);
    document.push(0xf6);
    assert!(decode(&document, &Limits::default()).is_err());
}

#[test]
fn unknown_names_and_versions_are_refused() {
    let names = |name| Cbor::Map(vec![(text("v"), 1.into()), (text("names"), Cbor::Map(vec![(text(name), 1.into())]))]);
    assert!(decode(&bytes(&names("result")), &Limits::default()).is_ok());
    assert!(decode(&bytes(&names("exit_code")), &Limits::default()).is_err());
    assert!(decode(&bytes(&Cbor::Map(vec![(text("v"), 2.into())])), &Limits::default()).is_err());
    assert!(decode(&bytes(&Cbor::Map(vec![])), &Limits::default()).is_err());
}

#[test]
fn nesting_stops_at_its_limit() {
    for tag in [None, Some(TAG_SET)] {
        let mut value = Cbor::Array(vec![]);
        for _ in 0..200 {
            value = Cbor::Array(vec![value]);
            value = tag.map_or(value.clone(), |tag| Cbor::Tag(tag, Box::new(value)));
        }
        assert_eq!(result_of(value).unwrap_err().code(), "result-too-deep");
    }
    // A stack that a recursive reader without a limit would run through.
    assert_eq!(decode(&with_tail(&[0x81; 5_000_000]), &Limits::default()).unwrap_err().code(), "result-too-deep");
    assert!(decode(&with_tail(&vec![0xc2; 5_000_000]), &Limits::default()).is_err());
}

#[test]
fn counts_and_sizes_stop_at_their_limits() {
    let document = with_result(Cbor::Array(vec![Cbor::Null; 100]));
    let limits = Limits { values: 50, ..Limits::default() };
    assert_eq!(decode(&document, &limits).unwrap_err().code(), "result-too-many-values");
    let limits = Limits { bytes: 50, ..Limits::default() };
    assert_eq!(decode(&document, &limits).unwrap_err().code(), "result-too-large");
}

#[test]
fn array_whose_shape_and_bytes_disagree_is_refused() {
    let array = |shape: &[u64], size: usize| {
        let shape = Cbor::Array(shape.iter().map(|&length| length.into()).collect());
        let numbers = Cbor::Tag(86, Box::new(Cbor::Bytes(vec![0; size])));
        result_of(Cbor::Tag(TAG_ARRAY, Box::new(Cbor::Array(vec![shape, numbers]))))
    };
    assert!(array(&[2, 3], 48).is_ok());
    assert!(array(&[2, 3], 47).is_err());
    assert!(array(&[1 << 62, 1 << 62], 48).is_err());
    assert!(array(&[u64::MAX, 0], 8).is_err());
}

#[test]
fn array_with_a_huge_empty_shape_is_no_json() {
    let shape = Cbor::Array(vec![(1_u64 << 59).into(), 0.into()]);
    let numbers = Cbor::Tag(86, Box::new(Cbor::Bytes(vec![])));
    let value = result_of(Cbor::Tag(TAG_ARRAY, Box::new(Cbor::Array(vec![shape, numbers])))).unwrap();
    let mut notes = Vec::new();
    assert_eq!(value.to_json(&mut notes), serde_json::Value::Null);
    assert_eq!(notes, ["the value is too large for JSON and null there"]);
}

#[test]
fn table_is_read_and_its_infinities_are_noted() {
    let value = result_of(arrow(small_table())).unwrap();
    let mut notes = Vec::new();
    let expected = serde_json::json!({
        "columns": ["a", "b"], "index": [0, 1, 2], "data": [[1.5, "x"], [null, ""], [null, null]]
    });
    assert_eq!(value.to_json(&mut notes), expected);
    assert_eq!(notes, ["1 number that JSON cannot hold (NaN, infinities) are null"]);
    assert_eq!(value.count_not_finite(), 1);
}

#[test]
fn table_with_broken_arrow_is_refused() {
    let stream = small_table();
    assert_eq!(result_of(arrow(Vec::new())).unwrap_err().code(), "result-table");
    for length in (8..stream.len() - 8).step_by(8) {
        assert!(result_of(arrow(stream[..length].to_vec())).is_err(), "cut at {length}");
    }
}

#[test]
fn table_of_nothing_but_length_is_no_json() {
    let schema = Schema::new(vec![Field::new("a", DataType::Null, true)]);
    let batch = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(NullArray::new(1 << 40))]).unwrap();
    let value = result_of(arrow(ipc(&batch))).unwrap();
    assert_eq!(value.to_json(&mut Vec::new()), serde_json::Value::Null);
}

#[test]
fn plain_columns_must_make_a_table() {
    let split = |columns: Vec<Cbor>, data: Vec<Cbor>| {
        let content = Cbor::Map(vec![
            (text("columns"), Cbor::Array(columns)),
            (text("index"), Cbor::Null),
            (text("data"), Cbor::Array(data)),
        ]);
        result_of(object(vec![text("split"), text("frame"), content]))
    };
    let column = |length| Cbor::Array(vec![1.into(); length]);
    assert!(split(vec![text("a"), text("b")], vec![column(2), column(2)]).is_ok());
    assert!(split(vec![text("a")], vec![column(2), column(2)]).is_err());
    assert!(split(vec![text("a"), text("b")], vec![column(2), column(3)]).is_err());
    assert!(split(vec![text("a")], vec![7.into()]).is_err());
}

/// Decodes, writes JSON and drops: none may panic.
fn survive(bytes: &[u8]) {
    if let Ok(document) = decode(bytes, &Limits::default()) {
        for value in [document.result, document.metrics, document.signals, document.report].into_iter().flatten() {
            drop(value.to_json(&mut Vec::new()));
            assert!(value.count_not_finite() <= bytes.len());
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        survive(&bytes);
        survive(&with_tail(&bytes));
    }

    #[test]
    fn damaged_tables_are_survived(damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut stream = small_table();
        for (index, byte) in damage {
            let index = index.index(stream.len());
            stream[index] = byte;
        }
        survive(&with_result(arrow(stream)));
    }
}
