//! The documents that nsbox writes for an image: those of its layout in the store, and its own where it came without.

use oci_spec::OciSpecError;
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, DescriptorBuilder, ImageConfigurationBuilder, ImageIndexBuilder,
    ImageManifestBuilder, MediaType, OciLayoutBuilder, Os, RootFsBuilder,
};

use super::digest::Digest;
use super::layer::{Compression, Layer};
use super::layout::blob_path;
use super::store::Record;

/// The documents of a layout beside its blobs, by their names: OCI's, and the same in the words of `docker save`.
pub(crate) fn of_layout(record: &Record, manifest_size: u64) -> Result<[(&'static str, String); 3], OciSpecError> {
    let layout = OciLayoutBuilder::default().image_layout_version("1.0.0").build()?.to_string()?;
    let paths: Vec<String> = record.layers.iter().map(|layer| blob_path(&layer.digest)).collect();
    let saved = serde_json::json!([{ "Config": blob_path(&record.config), "RepoTags": null, "Layers": paths }]);
    Ok([("index.json", index(record, manifest_size)?), ("oci-layout", layout), ("manifest.json", saved.to_string())])
}

fn descriptor(media_type: MediaType, size: u64, digest: &Digest) -> Result<Descriptor, OciSpecError> {
    let digest: oci_spec::image::Digest = digest.to_string().parse()?;
    DescriptorBuilder::default().media_type(media_type).size(size).digest(digest).build()
}

/// The configuration of a root file system, which has no time and no history, so that one tar is one image.
pub(crate) fn config(layers: &[Layer]) -> Result<String, OciSpecError> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    let rootfs = RootFsBuilder::default().typ("layers").diff_ids(diff_ids).build()?;
    let builder = ImageConfigurationBuilder::default().architecture(Arch::default()).os(Os::Linux);
    builder.config(ConfigBuilder::default().build()?).rootfs(rootfs).build()?.to_string()
}

/// The manifest of an image that has none.
pub(crate) fn manifest(config: &[u8], layers: &[Layer]) -> Result<String, OciSpecError> {
    let layers = layers.iter().map(|layer| {
        let media_type = match layer.compression {
            Compression::None => MediaType::ImageLayer,
            Compression::Gzip => MediaType::ImageLayerGzip,
            Compression::Zstd => MediaType::ImageLayerZstd,
        };
        descriptor(media_type, layer.size, &layer.digest)
    });
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    let config = descriptor(MediaType::ImageConfig, config.len() as u64, &Digest::of(config))?;
    let builder = ImageManifestBuilder::default().schema_version(2_u32).media_type(MediaType::ImageManifest);
    builder.config(config).layers(layers).build()?.to_string()
}

fn index(record: &Record, size: u64) -> Result<String, OciSpecError> {
    let manifest = descriptor(MediaType::ImageManifest, size, &record.digest)?;
    let builder = ImageIndexBuilder::default().schema_version(2_u32).media_type(MediaType::ImageIndex);
    builder.manifests(vec![manifest]).build()?.to_string()
}
