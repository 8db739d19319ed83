//! `tollgate schema`: the JSON Schema of each file, for editors, and the pages of all metrics and
//! of all that can be configured.

use crate::config::json_schema::{of_config, of_keys, of_tiers};
use crate::metrics::page::page;

use super::reference;
use super::{SchemaArgs, SchemaFile, print};

/// Prints the schema of a file.
pub fn schema(args: &SchemaArgs) {
    let schema = match args.file {
        SchemaFile::Config => of_config(),
        SchemaFile::Tiers => of_tiers(),
        SchemaFile::Keys => of_keys(),
        SchemaFile::Metrics => return print(page().trim_end()),
        SchemaFile::Configuration => return print(reference::page().trim_end()),
    };
    print(format_args!("{schema:#}"));
}
