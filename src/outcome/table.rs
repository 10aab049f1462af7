//! Tables that a guest hands back or is given: pandas' frames, series and indexes, as Arrow or, without pyarrow, as plain columns.
//!
//! Part of a [`Value`]. Arrow from a guest is read by the validating reader of `arrow-ipc`, and nothing
//! else ever looks at its bytes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array as _, ArrayRef, ArrowPrimitiveType, RecordBatch, make_array};
use arrow_buffer::Buffer;
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_ipc::reader::StreamDecoder;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, SchemaRef};
use serde_json::Value as Json;

use super::value::{JsonWriter, TooLarge, Value};

/// Why a table was not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The bytes are not a valid Arrow IPC stream.
    #[error("the bytes are not a valid Arrow stream")]
    Arrow(#[source] ArrowError),
    /// The reader of Arrow streams gave up on the bytes.
    #[error("the bytes broke the reader of Arrow streams")]
    ReaderPanicked,
    /// The stream ends before its schema.
    #[error("the Arrow stream has no schema")]
    NoSchema,
    /// Plain columns that do not make a table.
    #[error("the plain columns do not make a table: {0}")]
    Split(&'static str),
}

/// What kind of pandas object a table was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    /// A `DataFrame`.
    Frame,
    /// A `Series`: one column.
    Series,
    /// An `Index`: one column, or one for each level.
    Index,
}

impl TableKind {
    pub(super) fn from_name(name: &str) -> Option<Self> {
        [Self::Frame, Self::Series, Self::Index].into_iter().find(|kind| kind.name() == name)
    }

    /// What the guest calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Frame => "frame",
            Self::Series => "series",
            Self::Index => "index",
        }
    }
}

/// A table collected from a guest, or to be given to one.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    kind: TableKind,
    content: Content,
}

#[derive(Debug, Clone, PartialEq)]
enum Content {
    Arrow { stream: Buffer, schema: SchemaRef, batches: Vec<RecordBatch> },
    Split { columns: Vec<Value>, index: Value, data: Vec<Value> },
}

impl Table {
    /// A `DataFrame` of one batch: its columns under their names, with a `RangeIndex`, unless pandas' own metadata in the schema
    /// say more. Costs a copy, the Arrow IPC stream.
    ///
    /// # Errors
    /// A batch that cannot be written as a stream.
    pub fn from_batch(batch: &RecordBatch) -> Result<Self, TableError> {
        let schema = batch.schema();
        let mut stream = Vec::with_capacity(batch.get_array_memory_size() + (1 << 12));
        let mut writer = StreamWriter::try_new(&mut stream, &schema).map_err(TableError::Arrow)?;
        writer.write(batch).and_then(|()| writer.finish()).map_err(TableError::Arrow)?;
        drop(writer);
        let content = Content::Arrow { stream: Buffer::from_vec(stream), schema, batches: vec![batch.clone()] };
        Ok(Self { kind: TableKind::Frame, content })
    }

    /// Reads an Arrow IPC stream; the batches share its memory. What pandas and pyarrow write comes back as it was, with its
    /// index: see [`TableKind`] for series and indexes, which are tables of their own columns here.
    ///
    /// # Errors
    /// Bytes that are not a valid stream. Never panics, whatever the bytes.
    pub fn from_ipc(kind: TableKind, stream: Vec<u8>) -> Result<Self, TableError> {
        let stream = Buffer::from_vec(stream);
        // The reader is safe Rust, but it was written for streams that mean well: an index out of bounds ends here.
        let (schema, batches) = catch_unwind(AssertUnwindSafe(|| read_stream(stream.clone())))
            .map_err(|_| TableError::ReaderPanicked)??;
        Ok(Self { kind, content: Content::Arrow { stream, schema, batches } })
    }

    /// Takes the plain form `{"columns", "index", "data"}`.
    pub(super) fn from_split(kind: TableKind, content: Value) -> Result<Self, TableError> {
        let Value::Dict(entries) = content else {
            return Err(TableError::Split("not a map"));
        };
        let (mut columns, mut index, mut data) = (None, None, None);
        for (key, value) in entries {
            match (key.as_str(), value) {
                ("columns", Value::List(names)) => columns = Some(names),
                ("index", value) => index = Some(value),
                ("data", Value::List(values)) => data = Some(values),
                _ => return Err(TableError::Split("an entry is unknown or of another type")),
            }
        }
        let (Some(columns), Some(index), Some(data)) = (columns, index, data) else {
            return Err(TableError::Split("an entry is missing"));
        };
        if columns.len() != data.len() {
            return Err(TableError::Split("there are not as many names as columns"));
        }
        let rows = |column: &Value| match column {
            Value::List(cells) => Some(cells.len()),
            Value::Array(cells) if cells.shape().len() == 1 => cells.shape().first().copied(),
            _ => None,
        };
        let lengths = data.iter().chain((index != Value::Null).then_some(&index)).map(rows);
        let first = lengths.clone().next().flatten();
        if !lengths.clone().all(|length| length.is_some() && length == first) {
            return Err(TableError::Split("the columns are not of one length"));
        }
        Ok(Self { kind, content: Content::Split { columns, index, data } })
    }

    /// What kind of pandas object it was.
    #[must_use]
    pub fn kind(&self) -> TableKind {
        self.kind
    }

    /// The Arrow IPC stream as the guest wrote it, validated, with pandas' own metadata; `None` without pyarrow in the guest.
    #[must_use]
    pub fn ipc(&self) -> Option<&[u8]> {
        match &self.content {
            Content::Arrow { stream, .. } => Some(stream.as_slice()),
            Content::Split { .. } => None,
        }
    }

    /// The table's batches, index columns among the others; `None` without pyarrow in the guest.
    #[must_use]
    pub fn batches(&self) -> Option<&[RecordBatch]> {
        match &self.content {
            Content::Arrow { batches, .. } => Some(batches),
            Content::Split { .. } => None,
        }
    }

    /// The names, the index (null where there is none) and the columns of a table in plain form; `None` for Arrow.
    #[must_use]
    pub fn split(&self) -> Option<(&[Value], &Value, &[Value])> {
        match &self.content {
            Content::Arrow { .. } => None,
            Content::Split { columns, index, data } => Some((columns, index, data)),
        }
    }

    /// How many numbers of its columns are NaN or infinite; missing values are not numbers.
    pub(super) fn count_not_finite(&self) -> usize {
        fn not_finite<T: ArrowPrimitiveType<Native: Into<f64>>>(column: &ArrayRef) -> usize {
            column.as_primitive::<T>().iter().flatten().filter(|&number| !number.into().is_finite()).count()
        }
        match &self.content {
            Content::Arrow { batches, .. } => batches
                .iter()
                .flat_map(RecordBatch::columns)
                .map(|column| match column.data_type() {
                    DataType::Float16 => not_finite::<Float16Type>(column),
                    DataType::Float32 => not_finite::<Float32Type>(column),
                    DataType::Float64 => not_finite::<Float64Type>(column),
                    _ => 0,
                })
                .sum(),
            Content::Split { index, data, .. } => data.iter().chain([index]).map(Value::count_not_finite).sum(),
        }
    }

    /// pandas' split orientation: `{"columns", "index", "data"}` for a frame, `{"name", "index", "data"}` for a series, the
    /// bare labels for an index.
    pub(super) fn to_json(&self, json: &mut JsonWriter) -> Result<Json, TooLarge> {
        let (names, index, columns) = match &self.content {
            Content::Arrow { schema, batches, .. } => {
                // Formatting a hostile date or decimal may panic as well as reading it.
                catch_unwind(AssertUnwindSafe(|| arrow_parts(schema, batches, json))).unwrap_or(Err(TooLarge))?
            }
            Content::Split { columns, index, data } => {
                let index = match json.value(index)? {
                    Json::Array(labels) => labels,
                    _ => Vec::new(),
                };
                let mut cells = Vec::new();
                for column in data {
                    cells.push(match json.value(column)? {
                        Json::Array(cells) => cells,
                        other => vec![other],
                    });
                }
                (json.values(columns)?, index, cells)
            }
        };
        Ok(match self.kind {
            TableKind::Frame => serde_json::json!({"columns": names, "index": index, "data": rows(columns)}),
            TableKind::Series => {
                let name = names.into_iter().next().unwrap_or_default();
                let data = columns.into_iter().next().unwrap_or_default();
                serde_json::json!({"name": name, "index": index, "data": data})
            }
            TableKind::Index => Json::Array(labels(columns)),
        })
    }
}

fn read_stream(mut stream: Buffer) -> Result<(SchemaRef, Vec<RecordBatch>), TableError> {
    let mut decoder = StreamDecoder::new();
    let mut batches = Vec::new();
    while !stream.is_empty() {
        if let Some(batch) = decoder.decode(&mut stream).map_err(TableError::Arrow)? {
            batches.push(batch);
        }
    }
    decoder.finish().map_err(TableError::Arrow)?;
    Ok((decoder.schema().ok_or(TableError::NoSchema)?, batches))
}

/// Names, index labels and columns.
type Parts = (Vec<Json>, Vec<Json>, Vec<Vec<Json>>);

/// Takes a table apart as the metadata that pandas left in its schema says.
fn arrow_parts(schema: &SchemaRef, batches: &[RecordBatch], json: &mut JsonWriter) -> Result<Parts, TooLarge> {
    let length = batches.iter().try_fold(0_usize, |sum, batch| sum.checked_add(batch.num_rows())).ok_or(TooLarge)?;
    // Columns of nulls have a length and no bytes: this, too, is the guest's word.
    json.spend(schema.fields().len().saturating_add(1).checked_mul(length).ok_or(TooLarge)?)?;
    let metadata: Json =
        schema.metadata().get("pandas").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let index_columns = metadata["index_columns"].as_array().map_or(&[][..], Vec::as_slice);
    let described = metadata["columns"].as_array().map_or(&[][..], Vec::as_slice);
    let (mut names, mut columns, mut levels) = (Vec::new(), Vec::new(), Vec::new());
    for (position, field) in schema.fields().iter().enumerate() {
        let mut cells = Vec::with_capacity(length);
        for batch in batches {
            cells.extend(column(batch.column(position), json)?);
        }
        if index_columns.iter().any(|name| name.as_str() == Some(field.name())) {
            levels.push(cells);
        } else {
            let named = described.iter().find(|column| column["field_name"].as_str() == Some(field.name()));
            names.push(match named.map(|column| &column["name"]) {
                Some(Json::Null) => Json::Null,
                _ => json.text(field.name())?,
            });
            columns.push(cells);
        }
    }
    let index = if levels.is_empty() {
        let range = index_columns.first().unwrap_or(&Json::Null);
        let (start, step) = (range["start"].as_i64().unwrap_or(0), range["step"].as_i64().unwrap_or(1));
        (0..length)
            .map(|row| Json::from(i64::try_from(row).unwrap_or(i64::MAX).saturating_mul(step).saturating_add(start)))
            .collect()
    } else {
        labels(levels)
    };
    Ok((names, index, columns))
}

/// One label a row, a list where there is more than one level.
fn labels(mut levels: Vec<Vec<Json>>) -> Vec<Json> {
    if levels.len() == 1 { levels.pop().unwrap_or_default() } else { rows(levels) }
}

/// Columns turned into rows.
fn rows(columns: Vec<Vec<Json>>) -> Vec<Json> {
    let length = columns.first().map_or(0, Vec::len);
    let mut columns: Vec<_> = columns.into_iter().map(Vec::into_iter).collect();
    (0..length)
        .map(|_| columns.iter_mut().map(|column| column.next().unwrap_or_default()).collect::<Vec<_>>().into())
        .collect()
}

/// A column of Arrow in JSON.
fn column(array: &ArrayRef, json: &mut JsonWriter) -> Result<Vec<Json>, TooLarge> {
    macro_rules! numbers {
        ($type:ty) => {
            array.as_primitive::<$type>().iter().map(|cell| Ok(cell.map_or(Json::Null, Json::from))).collect()
        };
    }
    macro_rules! floats {
        ($type:ty) => {
            array
                .as_primitive::<$type>()
                .iter()
                .map(|cell| Ok(cell.map_or(Json::Null, |number| json.float(number.into()))))
                .collect()
        };
    }
    macro_rules! each {
        ($cells:expr, $write:ident) => {
            $cells.iter().map(|cell| cell.map_or(Ok(Json::Null), |cell| json.$write(cell))).collect()
        };
    }
    json.spend(array.len())?;
    match array.data_type() {
        DataType::Null => Ok(vec![Json::Null; array.len()]),
        DataType::Boolean => Ok(array.as_boolean().iter().map(|cell| cell.map_or(Json::Null, Json::from)).collect()),
        DataType::Int8 => numbers!(Int8Type),
        DataType::Int16 => numbers!(Int16Type),
        DataType::Int32 => numbers!(Int32Type),
        DataType::Int64 => numbers!(Int64Type),
        DataType::UInt8 => numbers!(UInt8Type),
        DataType::UInt16 => numbers!(UInt16Type),
        DataType::UInt32 => numbers!(UInt32Type),
        DataType::UInt64 => numbers!(UInt64Type),
        DataType::Float16 => floats!(Float16Type),
        DataType::Float32 => floats!(Float32Type),
        DataType::Float64 => floats!(Float64Type),
        DataType::Utf8 => each!(array.as_string::<i32>(), text),
        DataType::LargeUtf8 => each!(array.as_string::<i64>(), text),
        DataType::Utf8View => each!(array.as_string_view(), text),
        DataType::Binary => each!(array.as_binary::<i32>(), bytes),
        DataType::LargeBinary => each!(array.as_binary::<i64>(), bytes),
        DataType::BinaryView => each!(array.as_binary_view(), bytes),
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            let values = column(dictionary.values(), json)?;
            if values.is_empty() {
                return Ok(vec![Json::Null; array.len()]);
            }
            let keys = dictionary.normalized_keys();
            (0..array.len())
                .map(|row| if array.is_null(row) { Ok(Json::Null) } else { json.copy(&values[keys[row]]) })
                .collect()
        }
        DataType::List(_) => each_list(array.as_list::<i32>().iter(), json),
        DataType::LargeList(_) => each_list(array.as_list::<i64>().iter(), json),
        DataType::FixedSizeList(..) => each_list(array.as_fixed_size_list().iter(), json),
        DataType::Struct(fields) => {
            let structs = array.as_struct();
            let mut cells = vec![serde_json::Map::new(); array.len()];
            for (field, values) in fields.iter().zip(structs.columns()) {
                for (cell, value) in cells.iter_mut().zip(column(values, json)?) {
                    json.text(field.name())?;
                    cell.insert(field.name().clone(), value);
                }
            }
            let cells = cells.into_iter().enumerate();
            Ok(cells.map(|(row, cell)| if array.is_null(row) { Json::Null } else { Json::Object(cell) }).collect())
        }
        _ => formatted(array, json),
    }
}

fn each_list(lists: impl Iterator<Item = Option<ArrayRef>>, json: &mut JsonWriter) -> Result<Vec<Json>, TooLarge> {
    lists.map(|list| list.map_or(Ok(Json::Null), |list| column(&list, json).map(Json::Array))).collect()
}

/// Dates, times, durations (ISO 8601) and decimals, as `arrow-cast` writes them.
fn formatted(array: &ArrayRef, json: &mut JsonWriter) -> Result<Vec<Json>, TooLarge> {
    let array = match array.data_type() {
        // An instant is the same in every time zone, and only UTC needs no table of them.
        DataType::Timestamp(unit, Some(_)) => {
            let utc = DataType::Timestamp(*unit, Some("+00:00".into()));
            make_array(array.to_data().into_builder().data_type(utc).build().map_err(|_| TooLarge)?)
        }
        _ => array.clone(),
    };
    let options = FormatOptions::default();
    let Ok(formatter) = ArrayFormatter::try_new(&array, &options) else {
        return Ok(vec![Json::Null; array.len()]);
    };
    (0..array.len())
        .map(|row| {
            if array.is_null(row) {
                return Ok(Json::Null);
            }
            formatter.value(row).try_to_string().map_or(Ok(Json::Null), |text| json.text(&text))
        })
        .collect()
}
