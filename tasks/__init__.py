"""hf-offline: a document-embedding model, from the Hugging Face Hub to air-gapped GPU hosts. README.md starts there."""

VERSION = "0.1.0"
