"""DICOM archives on the network: find, fetch and send, by DICOMweb and DIMSE."""
