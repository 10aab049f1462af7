//! The table of a loop, best first, as CSV or Parquet.

use std::collections::HashSet;
use std::error::Error as StdError;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{BoolType, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::Type;

use super::Error;
use super::record::Row;
use crate::stats::word;

/// Columns of metrics: scripts choose their names, each its own.
const MAX_COLUMNS: usize = 1024;

/// Anything that goes wrong while a table is written.
type Failure = Box<dyn StdError + Send + Sync>;

/// Records in the order of one metric, the highest first; those without it last, in the order of iterations.
///
/// Its columns: `rank` from 1, `iteration`, `strategy`, `verdict`, `backend`, `degraded`, `id`, `wall_ms`, `setup_ms`,
/// `peak_memory_bytes`, and `metrics.NAME` for each number that a script left in `metrics`. What is not known is empty in CSV
/// and null in Parquet.
#[derive(Debug)]
pub struct Table<'a> {
    rows: Vec<&'a Row>,
    metrics: Vec<&'a str>,
    ranked: usize,
}

impl<'a> Table<'a> {
    /// Ranks by a metric: `sharpe_ratio`, or `metrics.sharpe_ratio`.
    #[must_use]
    pub fn ranked(rows: &'a [Row], metric: &str) -> Self {
        let metric = metric.strip_prefix("metrics.").unwrap_or(metric);
        let mut keyed: Vec<(Option<f64>, &Row)> = rows.iter().map(|row| (row.metric(metric), row)).collect();
        keyed.sort_by(|(a, row_a), (b, row_b)| {
            let by_metric = match (a, b) {
                (Some(a), Some(b)) => b.total_cmp(a),
                (a, b) => b.is_some().cmp(&a.is_some()),
            };
            by_metric.then(row_a.iteration.cmp(&row_b.iteration))
        });
        let ranked = keyed.iter().filter(|(number, _)| number.is_some()).count();
        let rows: Vec<&Row> = keyed.into_iter().map(|(_, row)| row).collect();
        let mut seen = HashSet::new();
        let names = rows.iter().flat_map(|row| &row.metrics).map(|(name, _)| name.as_str());
        let metrics = names.filter(|name| seen.insert(*name)).take(MAX_COLUMNS).collect();
        Self { rows, metrics, ranked }
    }

    /// How many records have the metric.
    #[must_use]
    pub fn with_metric(&self) -> usize {
        self.ranked
    }

    /// Writes it as CSV, with a line of names; a file that is there is replaced at once, not bit by bit.
    ///
    /// # Errors
    /// [`Error::Table`].
    pub fn write_csv(&self, path: &Path) -> Result<(), Error> {
        self.replace(path, |file| {
            let columns = self.columns();
            let mut csv = csv::Writer::from_writer(file);
            csv.write_record(columns.iter().map(|(name, _)| name))?;
            for row in 0..self.rows.len() {
                csv.write_record(columns.iter().map(|(_, column)| column.cell(row)))?;
            }
            csv.flush()?;
            Ok(())
        })
    }

    /// Writes it as Parquet; a file that is there is replaced at once, not bit by bit.
    ///
    /// # Errors
    /// [`Error::Table`].
    pub fn write_parquet(&self, path: &Path) -> Result<(), Error> {
        self.replace(path, |file| {
            let columns = self.columns();
            let fields = columns.iter().map(|(name, column)| column.field(name).map(Arc::new));
            let fields = fields.collect::<Result<_, _>>()?;
            let schema = Type::group_type_builder("schema").with_fields(fields).build()?;
            let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
            let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties))?;
            let mut rows = writer.next_row_group()?;
            for (_, column) in columns {
                let mut cells = rows.next_column()?.ok_or("a column without a place in the schema")?;
                column.write(&mut cells)?;
                cells.close()?;
            }
            rows.close()?;
            writer.close()?;
            Ok(())
        })
    }

    fn replace(
        &self,
        path: &Path,
        write: impl FnOnce(&mut (dyn Write + Send)) -> Result<(), Failure>,
    ) -> Result<(), Error> {
        let failed = |source| Error::Table { path: path.to_path_buf(), source };
        // A device or a pipe is written to, not replaced.
        let in_place = fs::metadata(path).is_ok_and(|about| !about.is_file());
        let mut name = OsString::from(path);
        name.push(".new");
        let target = if in_place { path.to_path_buf() } else { PathBuf::from(name) };
        let all = || {
            let mut file = BufWriter::new(File::create(&target)?);
            write(&mut file)?;
            file.flush()?;
            if !in_place {
                file.get_ref().sync_data()?;
                fs::rename(&target, path)?;
            }
            Ok(())
        };
        all().map_err(failed)
    }

    fn columns(&self) -> Vec<(String, Column)> {
        let rows = || self.rows.iter();
        let mut columns = vec![
            ("rank".to_owned(), Column::Whole((1..=self.rows.len() as u64).map(Some).collect())),
            ("iteration".to_owned(), Column::Whole(rows().map(|row| Some(row.iteration)).collect())),
            ("strategy".to_owned(), Column::Text(rows().map(|row| Some(row.strategy.clone())).collect())),
            ("verdict".to_owned(), Column::Text(rows().map(|row| Some(word(&row.verdict))).collect())),
            ("backend".to_owned(), Column::Text(rows().map(|row| row.backend.as_ref().map(word)).collect())),
            ("degraded".to_owned(), Column::Truth(rows().map(|row| row.degraded).collect())),
            ("id".to_owned(), Column::Text(rows().map(|row| Some(row.id.clone())).collect())),
            ("wall_ms".to_owned(), Column::Number(rows().map(|row| Some(row.usage.wall_ms)).collect())),
            ("setup_ms".to_owned(), Column::Number(rows().map(|row| Some(row.timings.setup_ms)).collect())),
            ("peak_memory_bytes".to_owned(), Column::Whole(rows().map(|row| row.usage.peak_memory_bytes).collect())),
        ];
        for name in &self.metrics {
            columns.push((format!("metrics.{name}"), Column::Number(rows().map(|row| row.metric(name)).collect())));
        }
        columns
    }
}

/// One column, by the type of its cells.
enum Column {
    Whole(Vec<Option<u64>>),
    Number(Vec<Option<f64>>),
    Truth(Vec<bool>),
    Text(Vec<Option<String>>),
}

impl Column {
    fn cell(&self, row: usize) -> String {
        let cell = match self {
            Self::Whole(cells) => cells[row].map(|cell| cell.to_string()),
            // The shortest form that reads back as the same number.
            Self::Number(cells) => cells[row].map(|cell| format!("{cell:?}")),
            Self::Truth(cells) => Some(cells[row].to_string()),
            Self::Text(cells) => cells[row].clone(),
        };
        cell.unwrap_or_default()
    }

    /// Its place in the schema of Parquet.
    fn field(&self, name: &str) -> Result<Type, ParquetError> {
        let (physical, logical) = match self {
            Self::Whole(_) => (Physical::INT64, Some(LogicalType::integer(64, false))),
            Self::Number(_) => (Physical::DOUBLE, None),
            Self::Truth(_) => (Physical::BOOLEAN, None),
            Self::Text(_) => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        };
        let field = Type::primitive_type_builder(name, physical).with_repetition(Repetition::OPTIONAL);
        field.with_logical_type(logical).build()
    }

    fn write(self, writer: &mut SerializedColumnWriter<'_>) -> Result<(), ParquetError> {
        match self {
            Self::Whole(cells) => write::<Int64Type, _>(writer, cells, u64::cast_signed),
            Self::Number(cells) => write::<DoubleType, _>(writer, cells, |cell| cell),
            Self::Truth(cells) => write::<BoolType, _>(writer, cells.into_iter().map(Some), |cell| cell),
            Self::Text(cells) => write::<ByteArrayType, _>(writer, cells, |cell| cell.into_bytes().into()),
        }
    }
}

/// Writes the cells that are there, and for each row whether its own is.
fn write<T: DataType, C>(
    writer: &mut SerializedColumnWriter<'_>,
    cells: impl IntoIterator<Item = Option<C>>,
    convert: impl Fn(C) -> T::T,
) -> Result<(), ParquetError> {
    let mut values = Vec::new();
    let mut levels = Vec::new();
    for cell in cells {
        levels.push(i16::from(cell.is_some()));
        values.extend(cell.map(&convert));
    }
    writer.typed::<T>().write_batch(&values, Some(&levels), None)?;
    Ok(())
}
