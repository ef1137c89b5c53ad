"""Results as DICOM objects of the patient they belong to, in the space of the scan they were found on."""
