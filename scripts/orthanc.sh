#!/bin/sh
# An archive to test against: Orthanc with its DICOMweb plugin, on loopback, with its storage in a folder of its own.
#
#   sh scripts/orthanc.sh install
#       installs Debian's orthanc and orthanc-dicomweb if they are missing
#   sh scripts/orthanc.sh start FOLDER HTTP_PORT DICOM_PORT [MOVE_PORT]
#       runs in the foreground until it is ended; FOLDER holds the storage and the configuration
#
# Variables of "start":
#   ORTHANC_AET             its AE title (ORTHANC)
#   ORTHANC_USER, ORTHANC_PASSWORD   ask for them over HTTP
#   ORTHANC_TLS             a folder with cert.pem, key.pem and ca.pem: TLS for DICOM. HTTPS needs a proxy in front:
#                           Orthanc 1.10.1 of Debian 12 ends with a segmentation fault on its first HTTPS connection
#   ORTHANC_CLIENT_AET      AE title that C-MOVE may send to, at MOVE_PORT (MEDAI)
set -eu

installed() {
    command -v Orthanc >/dev/null 2>&1 && plugin >/dev/null
}

plugin() {
    for found in /usr/share/orthanc/plugins/libOrthancDicomWeb.so*; do
        [ -e "$found" ] && echo "$found" && return 0
    done
    return 1
}

case "${1:-}" in
install)
    PATH="$PATH:/usr/sbin"
    if installed; then exit 0; fi
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "Orthanc and its DICOMweb plugin are missing; install them, or leave the tests of archives out." >&2
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "Orthanc is missing. Run this once, then the same make again:" >&2
        echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends orthanc orthanc-dicomweb" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # RUNLEVEL: the package's own service is not started
    RUNLEVEL=1 apt-get install -y -qq --no-install-recommends orthanc orthanc-dicomweb >/dev/null
    ;;
start)
    PATH="$PATH:/usr/sbin"
    folder=$2 http=$3 dicom=$4 move=${5:-0}
    installed || { echo "Orthanc or its DICOMweb plugin is missing: sh scripts/orthanc.sh install" >&2; exit 1; }
    mkdir -p "$folder/storage"
    users="" authentication=false tls=false security=""
    if [ -n "${ORTHANC_USER:-}" ]; then
        authentication=true
        users="\"$ORTHANC_USER\": \"$ORTHANC_PASSWORD\""
    fi
    if [ -n "${ORTHANC_TLS:-}" ]; then
        tls=true
        security="\"DicomTlsCertificate\": \"$ORTHANC_TLS/cert.pem\",
  \"DicomTlsPrivateKey\": \"$ORTHANC_TLS/key.pem\",
  \"DicomTlsTrustedCertificates\": \"$ORTHANC_TLS/ca.pem\",
  \"DicomTlsRemoteCertificateRequired\": false,"
    fi
    umask 077
    cat > "$folder/orthanc.json" <<END
{
  "Name": "test",
  "StorageDirectory": "$folder/storage",
  "IndexDirectory": "$folder/storage",
  "TemporaryDirectory": "$folder",
  "Plugins": ["$(plugin)"],
  "HttpPort": $http,
  "HttpBindAddresses": ["127.0.0.1"],
  "RemoteAccessAllowed": false,
  "AuthenticationEnabled": $authentication,
  "RegisteredUsers": {$users},
  "DicomTlsEnabled": $tls,
  $security
  "OrthancExplorerEnabled": false,
  "WebDavEnabled": false,
  "DicomAet": "${ORTHANC_AET:-ORTHANC}",
  "DicomPort": $dicom,
  "DicomCheckCalledAet": true,
  "DicomAlwaysAllowFind": true,
  "DicomAlwaysAllowGet": true,
  "DicomAlwaysAllowMove": true,
  "DicomModalities": {"client": ["${ORTHANC_CLIENT_AET:-MEDAI}", "127.0.0.1", $move]},
  "DicomAssociationCloseDelay": 0,
  "UnknownSopClassAccepted": true,
  "TranscodeDicomProtocol": true,
  "OverwriteInstances": false,
  "SyncStorageArea": false,
  "SaveJobs": false,
  "HttpCompressionEnabled": false,
  "DicomWeb": {"Enable": true, "Root": "/dicom-web/", "EnableWado": false, "Ssl": false, "Host": "127.0.0.1:$http"}
}
END
    # LANG: Orthanc ends where the system's locale is not installed
    LC_ALL=C exec Orthanc "$folder/orthanc.json"
    ;;
*)
    sed -n '2,16s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
