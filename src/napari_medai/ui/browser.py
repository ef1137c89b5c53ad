"""The study browser: what folders and media hold, as patients, studies and series, ready to be opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, QPoint, Qt, QTimer
from qtpy.QtGui import QPixmap
from qtpy.QtWidgets import (
    QApplication,
    QCheckBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QMenu,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_medai.core.errors import MedaiError
from napari_medai.core.stage import Cancelled
from napari_medai.core.volume import Volume
from napari_medai.io.study import Listing, StudySeries
from napari_medai.ui import browser_text as say
from napari_medai.ui import commands
from napari_medai.ui.browser_drops import CanvasDrops
from napari_medai.ui.browser_rows import Colors, Rows, pixmap_of
from napari_medai.ui.browser_work import Jobs, Request
from napari_medai.ui.job import Job
from napari_medai.ui.readers import open_volumes
from napari_medai.ui.reports import report

if TYPE_CHECKING:
    import napari.viewer

_POLL_MS = 100
_HINT = "Add a folder, a DICOMDIR or files, or drop them here."
# What "Open repaired" asks for; see `napari_medai.io.dicom.open_volume`.
REPAIRS = ("tilt", "missing")


class StudyBrowser(QWidget):
    """A dock widget that lists studies and opens their series; who the patients are is hidden until asked for.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Gets the layers.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        # napari hands plugins a proxy; see StagePanel
        self._viewer = getattr(viewer, "__wrapped__", viewer)
        self.listing = Listing()
        self._jobs = Jobs()
        self._paths: list[str] = []  # to be listed after what is being listed now
        self._requests: list[Request] = []  # to be opened after what is being opened now
        self._pictures: dict[tuple[str, str, int], QPixmap] = {}
        self._count = 0  # layers of this round of opening
        self._timer = QTimer(self)
        self._timer.setInterval(_POLL_MS)
        self._timer.timeout.connect(self._poll)
        self._build()
        self._connect()
        self._show_theme()
        self._refresh()

    # building

    def _build(self) -> None:
        self.rows = Rows()
        self.rows.hint = _HINT
        self.add_folder = _button("Add folder…", "addFolder", "List the studies of a folder and all folders in it.")
        self.add_file = _button(
            "Add DICOMDIR/zip…", "addFile", "List a DICOMDIR, an archive, or the series that a file belongs to."
        )
        self.clear_button = _button("Clear", "clear", "Empty the list. No file is touched.")
        self.filter = QLineEdit()
        self.filter.setObjectName("filter")
        self.filter.setPlaceholderText("Filter by modality or description")
        self.filter.setToolTip(
            "<p>Each word must stand in the modality, the description of the series or of the study.</p>"
        )
        self.filter.setClearButtonEnabled(True)
        self.show_identity = QCheckBox("Show identity")
        self.show_identity.setObjectName("showIdentity")
        self.show_identity.setToolTip(
            "<p>Read names, identifiers and dates from the files and show them here. They are stored nowhere, and this "
            "is off again whenever the browser is opened.</p>"
        )
        self.open_button = _button(
            "Open", "open", "Open the selected series as layers (Enter, double-click, or drag onto the canvas)."
        )
        self.bar = QProgressBar()
        self.bar.setRange(0, 1000)
        self.bar.setTextVisible(False)
        self.bar.setFixedHeight(8)
        self.cancel_button = _button("Cancel", "cancel", "Stop listing or opening; what is there already stays.")
        self.status = QLabel()
        self.status.setObjectName("totals")
        self.status.setWordWrap(True)

        top = QHBoxLayout()
        for widget in (self.add_folder, self.add_file, self.clear_button):
            top.addWidget(widget)
        second = QHBoxLayout()
        second.addWidget(self.filter, 1)
        second.addWidget(self.show_identity)
        progress = QHBoxLayout()
        progress.addWidget(self.bar, 1)
        progress.addWidget(self.cancel_button)
        bottom = QHBoxLayout()
        bottom.addWidget(self.status, 1)
        bottom.addWidget(self.open_button)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(8, 6, 8, 6)
        layout.setSpacing(6)
        for part in (top, second):
            layout.addLayout(part)
        layout.addWidget(self.rows, 1)
        layout.addLayout(progress)
        layout.addLayout(bottom)
        self.setObjectName("studyBrowser")
        self.setMinimumWidth(320)
        self.setAcceptDrops(True)
        self.setTabOrder(self.rows, self.open_button)

    def _connect(self) -> None:
        self.add_folder.clicked.connect(self._ask_folder)
        self.add_file.clicked.connect(self._ask_files)
        self.clear_button.clicked.connect(self.clear)
        self.filter.textChanged.connect(self._filter)
        self.show_identity.toggled.connect(self._on_identity)
        self.open_button.clicked.connect(self._open_chosen)
        self.cancel_button.clicked.connect(self.cancel)
        self.rows.opened.connect(self.open)
        self.rows.itemSelectionChanged.connect(self._update_buttons)
        self.rows.customContextMenuRequested.connect(self._show_menu)
        for signal in (self.rows.verticalScrollBar().valueChanged, self.rows.itemExpanded, self.rows.itemCollapsed):
            signal.connect(self._wake)
        self._viewer.events.theme.connect(self._show_theme)
        CanvasDrops(self._viewer, self).dropped.connect(self._on_drop)
        # whichever way the browser ends, its threads end with it
        self.destroyed.connect(self._jobs.stop)
        QApplication.instance().aboutToQuit.connect(self.stop)

    def _show_theme(self, _: Any = None) -> None:
        self.rows.colors = Colors.of(self._viewer.theme)
        self.rows.viewport().update()

    # listing

    def add(self, paths: Sequence[str]) -> None:
        """List what lies at some paths, beside what is listed already; returns at once."""
        self._paths += [str(path) for path in paths]
        self._next()

    def clear(self) -> None:
        """Empty the list."""
        self.cancel()
        self._jobs.abandon()
        self.listing = Listing()
        self._pictures.clear()
        self._refresh()

    def cancel(self) -> None:
        """Stop listing and opening; what is there already stays."""
        self._paths.clear()
        self._requests.clear()
        for job in (self._jobs.listing, self._jobs.opening):
            if job is not None:
                job.cancel()

    def _ask_folder(self) -> None:
        path = commands.ask_folder(self._viewer)
        if path:
            self.add([path])

    def _ask_files(self) -> None:
        self.add(commands.ask_files(self._viewer))

    def _refresh(self) -> None:
        self.rows.fill(self.listing, self._pictures)
        self._filter()
        self._on_identity(self.show_identity.isChecked())
        self._say(say.totals(self.listing) if self.listing.series or self.listing.findings else "")
        self._update_buttons()

    def _filter(self, _: str = "") -> None:
        left = self.rows.keep_matching(self.filter.text())
        if self.filter.text().strip():
            self._say(f"{left} of {say.counted(len(self.listing.series), 'series', 'series')} shown")
        elif self.listing.series:
            self._say(say.totals(self.listing))
        self._update_buttons()
        self._wake()

    def _on_identity(self, shown: bool) -> None:
        if not shown:
            self._jobs.forget_identities()
            self.rows.name({})
            return
        self._jobs.identify([study for study in self.listing.studies if study.file])
        self._wake()

    # opening

    def open(self, series: Sequence[StudySeries], options: Mapping[str, Any] | None = None) -> None:
        """Open series as layers, in order; returns at once.

        Parameters
        ----------
        series : sequence of StudySeries
            Of the listing.
        options : mapping, optional
            Of `napari_medai.open`, e.g. ``{"repair": ("tilt",)}``.
        """
        self._requests += [Request(one, options or {}) for one in series]
        self._next()

    def _open_chosen(self) -> None:
        self.open(self.rows.chosen())

    def _on_drop(self, dragged: Sequence[tuple[str, str]]) -> None:
        known = {(one.path, one.series_uid): one for one in self.listing.series}
        self.open([known[one] for one in dragged if one in known])

    def _show_menu(self, where: QPoint) -> None:
        menu = self.menu()
        if menu is not None:
            menu.popup(self.rows.viewport().mapToGlobal(where))

    def menu(self) -> QMenu | None:
        """The context menu of what is selected."""
        series = self.rows.chosen()
        if not series:
            return None
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        menu.setToolTipsVisible(True)
        menu.addAction("Open", lambda: self.open(series))
        dicom = [one for one in series if one.is_dicom]
        if dicom:
            repaired = menu.addAction("Open repaired (tilt, missing slices)")
            repaired.setToolTip(
                "A tilted gantry is straightened, missing slices are filled in between their neighbours."
            )
            repaired.triggered.connect(lambda: self.open(dicom, {"repair": REPAIRS}))
        if dicom and all(one.info.modality == "PT" for one in series):
            suv = menu.addAction("Open as SUV")
            suv.setToolTip("Standardised uptake value by body weight.")
            suv.triggered.connect(lambda: self.open(dicom, {"values": "suv"}))
        return menu

    def _show(self, made: Volume | MedaiError) -> None:
        if isinstance(made, MedaiError):
            self._say(report(made))
            return
        try:
            self._count += len(open_volumes(self._viewer, [made]))
        except MedaiError as error:
            self._say(report(error))

    # what the threads do meanwhile

    def _next(self) -> None:
        """Start what waits, and look at it from now on."""
        if self._paths and self._jobs.listing is None:
            paths, self._paths = self._paths, []
            self._jobs.look(paths)
        if self._requests and self._jobs.opening is None:
            requests, self._requests = self._requests, []
            self._count = 0
            self._jobs.open(requests)
        self._update_buttons()
        self._wake()

    def _wake(self, *_: Any) -> None:
        if not self._timer.isActive():
            self._timer.start()

    def _poll(self) -> None:
        jobs = self._jobs
        while jobs.drawn:
            key, pixels = jobs.drawn.popleft()
            self._pictures[key] = pixmap_of(pixels) if pixels is not None else QPixmap()
            self.rows.picture(key, self._pictures[key])
        if jobs.opened:
            self._show(jobs.opened.popleft())  # one at a time: adding a layer lets Qt handle events
        for job in (jobs.listing, jobs.opening):
            if job is not None and not job.state.finished:
                self._show_progress(job)
        if jobs.pictures is not None and jobs.pictures.state.finished:
            jobs.pictures = None
        if jobs.identities is not None and jobs.identities.state.finished:
            found, jobs.identities = jobs.identities.result(), None
            self.rows.name(found)
        if jobs.opening is not None and jobs.opening.state.finished and not jobs.opened:
            self._end_opening(jobs.opening)
        if jobs.listing is not None and jobs.listing.state.finished:
            self._end_listing(jobs.listing)
        if jobs.pictures is None:
            waiting = self.rows.without_picture()
            if waiting:
                jobs.draw(waiting)
        if not jobs.busy and not self._paths and not self._requests:
            self._timer.stop()
        self._update_buttons()

    def _show_progress(self, job: Job[Any]) -> None:
        state = job.state
        if state.fraction is None:
            self.bar.setRange(0, 0)
        else:
            self.bar.setRange(0, 1000)
            self.bar.setValue(round(1000 * state.fraction))
        self._say("Cancelling …" if state.cancelling else (state.message or "Looking for files") + " …")

    def _end_listing(self, job: Job[Listing]) -> None:
        self._jobs.listing = None
        error = job.error
        if error is None:
            self.listing = self.listing.with_more(job.result())
            self._refresh()
        else:
            self._say("Cancelled." if isinstance(error, Cancelled) else report(error))
        self._next()

    def _end_opening(self, job: Job[None]) -> None:
        self._jobs.opening = None
        error = job.error
        if error is not None and not isinstance(error, Cancelled):
            self._say(report(error))
        elif self._count or error is not None:
            self._say(f"{say.counted(self._count, 'layer')} opened{'; the rest was cancelled' if error else ''}.")
        self._next()

    def _update_buttons(self) -> None:
        working = self._jobs.listing is not None or self._jobs.opening is not None
        self.bar.setVisible(working)
        self.cancel_button.setVisible(working)
        self.open_button.setEnabled(bool(self.rows.chosen()))
        self.clear_button.setEnabled(bool(self.listing.series or self.listing.findings))
        self.show_identity.setEnabled(any(study.file for study in self.listing.studies) or not self.listing.studies)

    def _say(self, text: str) -> None:
        self.status.setText(text)

    # files dropped on the dock

    def dragEnterEvent(self, event: Any) -> None:  # noqa: N802  (Qt's name)
        """Files and folders are welcome."""
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: Any) -> None:  # noqa: N802  (Qt's name)
        """List what was dropped."""
        event.acceptProposedAction()
        self.add([url.toLocalFile() for url in event.mimeData().urls() if url.isLocalFile()])

    def resizeEvent(self, event: Any) -> None:  # noqa: N802  (Qt's name)
        """More rows may have come into sight."""
        super().resizeEvent(event)
        self._wake()

    # ending

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802  (Qt's name)
        """Taken out of its dock, which is how napari closes a panel, it ends its threads."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self.stop()

    def stop(self) -> None:
        """End all threads."""
        self._timer.stop()
        self._paths.clear()
        self._requests.clear()
        self._jobs.stop()


def _button(text: str, name: str, tip: str) -> QPushButton:
    button = QPushButton(text)
    button.setObjectName(name)
    button.setToolTip(f"<p>{tip}</p>")
    button.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
    return button
