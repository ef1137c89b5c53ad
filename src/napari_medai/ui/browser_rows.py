"""The rows of the study browser: a tree of patients, studies and series, drawn with thumbnails and findings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QMimeData, QModelIndex, QPointF, QRect, QSize, Qt, Signal
from qtpy.QtGui import QColor, QFont, QIcon, QImage, QPainter, QPixmap, QPolygonF
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QTreeWidget,
    QTreeWidgetItem,
)

from napari_medai.io.study import Identity, Listing, Study, StudySeries
from napari_medai.ui import browser_text as say

# What a drag of series carries: a list of [path, series UID].
MIME = "application/x-napari-medai-series"
THUMBNAIL = 60
_MARGIN, _GAP, _ICON = 5, 8, 13
_INDENT = 14
_CONTENT = Qt.ItemDataRole.UserRole


@dataclass(eq=False)
class Row:
    """What a row of the tree stands for.

    Attributes
    ----------
    kind : str
        ``"patient"``, ``"study"``, ``"series"`` or ``"finding"``.
    study : Study or None
        Its study; of a patient, the first one.
    series : StudySeries or None
        Of a series.
    note : str
        What stands on the right.
    thumbnail : QPixmap or None
        Once it is decoded; a null one if it cannot be.
    """

    kind: str
    study: Study | None = None
    series: StudySeries | None = None
    note: str = ""
    thumbnail: QPixmap | None = None


@dataclass
class Colors:
    """Out of napari's theme."""

    text: QColor
    dim: QColor
    selected: QColor
    badge: QColor
    empty: QColor
    warning: QIcon

    @staticmethod
    def of(theme: str) -> Colors:
        """The colours of a theme by its id."""
        from napari._qt.qt_resources import QColoredSVGIcon
        from napari.utils.theme import get_theme

        found = get_theme(theme)
        text, background = (QColor(*color.as_rgb_tuple()[:3]) for color in (found.text, found.background))
        dim = QColor(*((3 * a + 2 * b) // 5 for a, b in zip(text.getRgb()[:3], background.getRgb()[:3], strict=True)))
        # yellow on a light ground cannot be read: darker there
        warning = QColor(*found.warning.as_rgb_tuple()[:3])
        warning = warning.darker(150) if background.lightness() > 128 else warning
        current, primary = (QColor(*color.as_rgb_tuple()[:3]) for color in (found.current, found.primary))
        icon = QColoredSVGIcon.from_resources("warning").colored(warning.name())
        return Colors(text, dim, current, primary, background, icon)


class Rows(QTreeWidget):
    """The tree. Emits ``opened`` with a list of `StudySeries` on double-click and Enter."""

    opened = Signal(list)

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("studies")
        self.setAccessibleName("Patients, studies and series")
        self.setHeaderHidden(True)
        self.setColumnCount(1)
        self.header().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.setIndentation(_INDENT)
        self.setUniformRowHeights(False)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setDragEnabled(True)
        self.setDragDropMode(QAbstractItemView.DragDropMode.DragOnly)
        self.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.colors = Colors.of("dark")
        self.hint = ""
        self.setItemDelegate(_Drawn(self))
        self.itemDoubleClicked.connect(self._on_double_click)

    # content

    def fill(self, listing: Listing, pictures: Mapping[tuple[str, str, int], QPixmap]) -> None:
        """Show a listing; what was folded in or selected stays so."""
        folded = {self._place(item) for item in self._items() if item.childCount() and not item.isExpanded()}
        selected = {one.key for one in self.chosen()}
        position = self.verticalScrollBar().value()
        self.clear()
        patients: dict[str, list[Study]] = {}
        for study in listing.studies:
            patients.setdefault(study.patient, []).append(study)
        for patient, studies in patients.items():
            every = [one for study in studies for one in study.series]
            note = say.counted(len(studies), "study", "studies") if patient else say.study_note(every)
            top = self._add(self, Row("patient", studies[0], note=note))
            for study in studies:
                # files that know no patient know no study either
                parent = self._add(top, Row("study", study, note=say.study_note(study.series))) if patient else top
                for one in study.series:
                    row = self._add(parent, Row("series", study, one, thumbnail=pictures.get(one.key)))
                    row.setText(0, say.series_text(one))
                    row.setToolTip(0, say.series_tip(one))
                    row.setSelected(one.key in selected)
        if listing.findings:
            what = f"{say.counted(listing.unread, 'file')} not read" if listing.unread else "Findings"
            top = self._add(self, Row("finding"))
            top.setText(0, what)
            top.setToolTip(0, "Files that belong to none of the series above, and why.")
            for finding in listing.findings:
                line = self._add(top, Row("finding"))
                line.setText(0, finding)
                line.setToolTip(0, f"<p>{finding}</p>")
        self.name({})
        for item in self._items():
            item.setExpanded(self._place(item) not in folded and row_of(item).kind != "finding")
        self.verticalScrollBar().setValue(position)

    def name(self, identities: Mapping[tuple[str, str], Identity]) -> None:
        """Show pseudonyms, with the identity of the studies whose keys are given."""
        for item in self._items():
            row = row_of(item)
            if row.kind == "patient" and row.study is not None:
                item.setText(0, say.patient_text(row.study, identities.get(row.study.key)))
            elif row.kind == "study" and row.study is not None:
                item.setText(0, say.study_text(row.study, identities.get(row.study.key)))

    def keep_matching(self, wanted: str) -> int:
        """Hide the series that do not match a filter; returns how many are left."""
        left = 0
        for item in self._items():
            row = row_of(item)
            if row.series is not None and row.study is not None:
                shown = say.matches(row.series, row.study, wanted)
                item.setHidden(not shown)
                left += shown
        for item in reversed(list(self._items())):  # parents after their children
            if row_of(item).kind in ("patient", "study"):
                item.setHidden(all(item.child(n).isHidden() for n in range(item.childCount())))
        return left

    def picture(self, key: tuple[str, str, int], pixmap: QPixmap) -> None:
        """Give a series its thumbnail."""
        for item in self._items():
            row = row_of(item)
            if row.series is not None and row.series.key == key:
                row.thumbnail = pixmap
        self.viewport().update()

    def chosen(self) -> list[StudySeries]:
        """The series that are selected and not filtered away, from top to bottom."""
        shown = (item for item in self._items() if item.isSelected() and not item.isHidden())
        return [row.series for row in map(row_of, shown) if row.series is not None]

    def without_picture(self) -> list[StudySeries]:
        """The series in sight that have no thumbnail yet."""
        found = []
        item = self.itemAt(QRect(self.viewport().rect()).topLeft())
        bottom = self.viewport().rect().bottom()
        while item is not None and self.visualItemRect(item).top() <= bottom:
            row = row_of(item)
            if row.series is not None and row.thumbnail is None:
                found.append(row.series)
            item = self.itemBelow(item)
        return found

    def _add(self, parent: Any, row: Row) -> QTreeWidgetItem:
        item = QTreeWidgetItem(parent)
        item.setData(0, _CONTENT, row)
        flags = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
        item.setFlags(flags | Qt.ItemFlag.ItemIsDragEnabled if row.kind == "series" else flags)
        return item

    def _items(self) -> Iterator[QTreeWidgetItem]:
        waiting = [self.topLevelItem(n) for n in reversed(range(self.topLevelItemCount()))]
        while waiting:
            item = waiting.pop()
            yield item
            waiting += [item.child(n) for n in reversed(range(item.childCount()))]

    @staticmethod
    def _place(item: QTreeWidgetItem) -> tuple[str, object]:
        row = row_of(item)
        if row.study is None:
            return row.kind, ""
        return row.kind, row.study.patient_key if row.kind == "patient" else row.study.key

    # opening

    def _on_double_click(self, item: QTreeWidgetItem, _: int) -> None:
        row = row_of(item)
        if row.series is not None:
            self.opened.emit([row.series])

    def keyPressEvent(self, event: Any) -> None:  # noqa: N802  (Qt's name)
        """Enter opens what is selected, or folds a patient or study in and out."""
        if event.key() not in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            super().keyPressEvent(event)
            return
        if self.chosen():
            self.opened.emit(self.chosen())
        elif self.currentItem() is not None:
            self.currentItem().setExpanded(not self.currentItem().isExpanded())

    def mimeTypes(self) -> list[str]:  # noqa: N802  (Qt's name)
        """What a drag carries."""
        return [MIME]

    def mimeData(self, items: Any) -> QMimeData:  # noqa: N802  (Qt's name)
        """The series that are dragged, from top to bottom."""
        data = QMimeData()
        data.setData(MIME, json.dumps([[one.path, one.series_uid] for one in self.chosen()]).encode())
        return data

    # drawing

    def paintEvent(self, event: Any) -> None:  # noqa: N802  (Qt's name)
        """The rows, or what to do where there are none."""
        super().paintEvent(event)
        if self.hint and not self.topLevelItemCount():
            painter = QPainter(self.viewport())
            painter.setPen(self.colors.dim)
            area = self.viewport().rect().adjusted(20, 20, -20, -20)
            painter.drawText(area, int(Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap), self.hint)
            painter.end()

    def drawBranches(self, painter: Any, rect: Any, index: QModelIndex) -> None:  # noqa: N802  (Qt's name)
        """An arrow before what can be folded; napari's style sheet leaves Qt's own black on dark."""
        item = self.itemFromIndex(index)
        if item is not None and item.isSelected():
            painter.fillRect(rect, self.colors.selected)
        if item is None or not item.childCount():
            return
        x, y, r = rect.right() - _INDENT / 2 + 0.5, rect.center().y() + 0.5, 4.0
        down = [(-r, -r / 2), (r, -r / 2), (0, r / 2)]
        right = [(-r / 2, -r), (-r / 2, r), (r / 2, 0)]
        points = [QPointF(x + dx, y + dy) for dx, dy in (down if item.isExpanded() else right)]
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(self.colors.dim)
        painter.drawPolygon(QPolygonF(points))
        painter.restore()


def row_of(item: QTreeWidgetItem) -> Row:
    """What a row stands for."""
    row: Row = item.data(0, _CONTENT)
    return row


def pixmap_of(pixels: NDArray[np.uint8]) -> QPixmap:
    """A picture for Qt out of (h, w, 3) pixels."""
    height, width, _ = pixels.shape
    data = np.ascontiguousarray(pixels)
    return QPixmap.fromImage(QImage(data.data, width, height, 3 * width, QImage.Format.Format_RGB888).copy())


class _Drawn(QStyledItemDelegate):
    """Draws the rows."""

    def __init__(self, tree: Rows) -> None:
        super().__init__(tree)
        self.tree = tree
        self.dim = tree.colors.dim

    def sizeHint(self, option: QStyleOptionViewItem, index: QModelIndex) -> QSize:  # noqa: N802  (Qt's name)
        """Three lines or a thumbnail for a series; one line, or as many as it takes, for the others."""
        row: Row = index.data(_CONTENT)
        line = option.fontMetrics.height()
        if row.kind == "series":
            return QSize(100, max(THUMBNAIL, 3 * line + 4) + 2 * _MARGIN)
        if row.kind == "finding" and index.parent().isValid():
            width = max(80, self.tree.viewport().width() - 2 * _INDENT - 2 * _MARGIN)
            flags = int(Qt.TextFlag.TextWordWrap)
            text = option.fontMetrics.boundingRect(QRect(0, 0, width, 4000), flags, index.data())
            return QSize(100, text.height() + _MARGIN)
        return QSize(100, line + 2 * _MARGIN)

    def paint(self, painter: Any, option: QStyleOptionViewItem, index: QModelIndex) -> None:
        """Draw one row."""
        row: Row = index.data(_CONTENT)
        colors = self.tree.colors
        self.dim = colors.dim
        painter.save()
        area = QRect(option.rect)
        if option.state & QStyle.StateFlag.State_Selected:
            painter.fillRect(area, colors.selected)
            self.dim = colors.text  # dim on the colour of the selection is too faint to read
        if option.state & QStyle.StateFlag.State_HasFocus:
            painter.setPen(self.dim)
            painter.drawRect(area.adjusted(0, 0, -1, -1))
        area.adjust(_MARGIN, _MARGIN, -_MARGIN, -_MARGIN)
        if row.series is not None:
            area.adjust(-_INDENT, 0, 0, 0)  # where others have their arrow
            self._series(painter, area, row, row.series, option)
        elif row.kind == "finding" and index.parent().isValid():
            painter.setPen(self.dim)
            area.adjust(0, -_MARGIN // 2, 0, _MARGIN)
            painter.drawText(area, int(Qt.TextFlag.TextWordWrap), index.data())
        else:
            if row.kind == "finding":
                area = self._warn(painter, area)
            self._line(painter, area, index.data(), row.note, bold=row.kind == "patient", font=option.font)
        painter.restore()

    def _series(self, painter: Any, area: QRect, row: Row, series: StudySeries, option: Any) -> None:
        colors, line = self.tree.colors, option.fontMetrics.height()
        box = QRect(area.left(), area.top(), THUMBNAIL, THUMBNAIL)
        painter.fillRect(box, Qt.GlobalColor.black if row.thumbnail is not None else colors.empty)
        if row.thumbnail is not None and not row.thumbnail.isNull():
            shown = row.thumbnail.scaled(box.size(), Qt.AspectRatioMode.KeepAspectRatio, _SMOOTH)
            painter.drawPixmap(box.center() - shown.rect().center(), shown)
        elif row.thumbnail is not None:
            painter.setPen(QColor("gray"))
            painter.drawText(box, int(Qt.AlignmentFlag.AlignCenter), "?")
        text = area.adjusted(THUMBNAIL + _GAP, 0, 0, 0)
        text.setHeight(line)
        step = max(line, (THUMBNAIL - line) // 2 - 1)
        first = self._badge(painter, text, series.info.modality, option)
        self._line(painter, first, say.title_of(series), say.files_of(series), bold=True, font=option.font)
        text.translate(0, step)
        self._line(painter, text, say.extent_of(series), "", dim=True, font=option.font)
        if series.findings:
            text.translate(0, step)
            more = f"+{len(series.findings) - 1}" if len(series.findings) > 1 else ""
            self._line(painter, self._warn(painter, text), series.findings[0], more, dim=True, font=option.font)

    def _badge(self, painter: Any, area: QRect, modality: str, option: Any) -> QRect:
        if not modality:
            return area
        label = option.fontMetrics.elidedText(modality, Qt.TextElideMode.ElideRight, 60)
        badge = QRect(area.left(), area.top(), option.fontMetrics.horizontalAdvance(label) + 8, area.height())
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(self.tree.colors.badge)
        painter.drawRoundedRect(badge, 3, 3)
        painter.setPen(self.tree.colors.text)
        painter.drawText(badge, int(Qt.AlignmentFlag.AlignCenter), label)
        return area.adjusted(badge.width() + 6, 0, 0, 0)

    def _warn(self, painter: Any, area: QRect) -> QRect:
        box = QRect(area.left(), area.center().y() - _ICON // 2, _ICON, _ICON)
        self.tree.colors.warning.paint(painter, box)
        return area.adjusted(_ICON + 5, 0, 0, 0)

    def _line(
        self, painter: Any, area: QRect, text: str, note: str, *, font: QFont, bold: bool = False, dim: bool = False
    ) -> None:
        """One line, cut where it does not fit, and a note on the right."""
        middle = int(Qt.AlignmentFlag.AlignVCenter)
        painter.setFont(font)
        if note:
            painter.setPen(self.dim)
            painter.drawText(area, middle | int(Qt.AlignmentFlag.AlignRight), note)
            area = area.adjusted(0, 0, -painter.fontMetrics().horizontalAdvance(note) - _GAP, 0)
        strong = QFont(font)
        strong.setBold(bold)
        painter.setFont(strong)
        painter.setPen(self.dim if dim else self.tree.colors.text)
        cut = painter.fontMetrics().elidedText(text, Qt.TextElideMode.ElideRight, area.width())
        painter.drawText(area, middle, cut)


_SMOOTH = Qt.TransformationMode.SmoothTransformation
