"""Words and the text made of them, in the languages that the DejaVu fonts cover.

Training and evaluation pages share no word: every third word of a language is kept for
evaluation. What the model must learn is how letters stand, not which words there are.
"""

from random import Random
from typing import Literal

Split = Literal["train", "eval"]

_WORDS = {
    "english": """
        about account address after agreement almost amount annual answer area article balance
        because before board bridge budget building carefully century change chapter city close
        committee company condition contract customer daily decision delivery department detail
        different district during early education effect energy engine estimate evening example
        factory family figure final following forest former garden general government growth
        harbour health history however important income industry influence island journal journey
        knowledge language letter library machine market measure meeting method minister morning
        mountain national nothing number office order paper payment people period physical picture
        planning possible problem product project property public quality question railway reason
        receipt record report research result river school science season section service several
        simple society station street student subject summer supply surface system table teacher
        theory through together travel village voltage water weather winter without woman work
        writing yesterday""",
    "german": """
        Abbildung Abend Abrechnung allerdings Angebot Antwort Anzahl Arbeit Aufgabe Ausgabe außerdem
        Bahnhof bedeutend Beispiel Bericht besonders Betrag Bezeichnung Brücke Buch daher danach
        Dauer deutlich Druck Eigenschaft einfach Empfänger Entwicklung Ergebnis erste Fabrik Farbe
        fließend Frage Frühling Garten Gebäude gegenüber Gemeinde Geschichte Gesellschaft gewöhnlich
        Größe häufig Jahrhundert jedoch König Kunde Landschaft langsam Lieferung Menge möglich
        Nachricht natürlich Nummer öffentlich Ordnung Platz Preis Prüfung Quelle Rechnung Regierung
        Schüler Sommer Sprache Straße Stück Tabelle täglich Übersicht Umgebung ungefähr Unterricht
        Verfahren Vertrag vielleicht Vorschlag Wasser wichtig Winter Wissenschaft wöchentlich
        Zahlung Zeitung Zusammenhang zwischen""",
    "french": """
        accord adresse affaire ainsi année août appareil après article assemblée atelier aucun avant
        bâtiment besoin bibliothèque boulevard campagne chaleur chapitre château chemin client
        commande compte conseil côté cuisine début demande dernier développement dimanche document
        école économie énergie enfant énoncé entreprise épreuve équipe étage étude exemple facture
        façade février fleuve forêt français garçon gouvernement histoire hiver hôtel immeuble
        île jardin journée langue leçon lettre livraison logement lumière maître marché matière
        méthode montagne musée naturel niveau nombre œuvre ouvrage paiement parole pêche période
        plusieurs préfecture problème projet quartier question réponse résultat rivière séance
        siècle société souvent théâtre travail université vérité ville voyage""",
    "spanish": """
        acuerdo además agua ahora almacén año aplicación artículo asunto barrio bastante
        biblioteca calle camino campaña cantidad capítulo carretera ciudad cliente comercio conjunto
        consejo cuenta derecho después dirección domingo economía edificio educación ejemplo empresa
        enseñanza escuela español estación estudio factura fábrica frecuencia fuente general
        habitación historia iglesia industria informe jardín jornada lengua lección libro límite
        lugar mañana máquina medida mercado método ministerio montaña mujer museo número obra
        origen pequeño periódico pregunta producción pueblo químico razón región respuesta río
        semana señal servicio siguiente sociedad también tiempo trabajo último universidad valor
        verano viaje vivienda""",
    "greek": """
        αγορά αεροδρόμιο αίθουσα ακόμη αλήθεια ανάλυση άνθρωπος απάντηση αποτέλεσμα αριθμός
        βιβλίο βιβλιοθήκη βουνό γέφυρα γλώσσα γραφείο δάσκαλος δεύτερος δημόσιος διαδρομή διεύθυνση
        δρόμος εβδομάδα εικόνα ελληνικά εμπόριο ενέργεια εποχή εργασία ερώτηση εταιρεία ζήτημα
        ημέρα θάλασσα θεωρία θέατρο ιστορία καιρός καλοκαίρι κατάστημα κεφάλαιο κοινωνία λιμάνι
        λογαριασμός μάθημα μέθοδος μηχανή μουσείο νερό νησί νόμος ξενοδοχείο οικονομία ουρανός
        παράδειγμα παραγγελία πελάτης περιοχή πληρωμή ποτάμι πρόβλημα πρόγραμμα σελίδα σταθμός
        συμφωνία σύστημα σχολείο ταξίδι τιμή υπηρεσία φθινόπωρο φοιτητής φύση χειμώνας χρόνος
        χώρα ψωμί ωκεανός""",
    "russian": """
        адрес анализ библиотека больница вагон ведомость весна вечер вода вокзал вопрос время
        газета глава город господин граница данные дерево деревня директор договор доклад дорога
        единица журнал задача закон заказ запись здание зима знание известный институт история
        квартира книга количество конец корабль лестница лето линия магазин материал машина место
        министр мост музей народ наука неделя область общество обычно озеро осень остров ответ
        отчёт очередь перевод письмо площадь погода поезд покупатель получить помощь правило
        предприятие пример природа продукт проект работа развитие расчёт результат река рынок
        свобода северный система словарь собрание средний станция страница счёт таблица теория
        товар улица университет учитель фабрика хозяйство художник цена часть число школа язык""",
}
LANGUAGES = tuple(_WORDS)
_EVAL_STRIDE = 3


def words(language: str, split: Split) -> list[str]:
    """The words of a language that pages of this split may use."""
    everything = _WORDS[language].split()
    return [w for i, w in enumerate(everything) if (i % _EVAL_STRIDE == 0) == (split == "eval")]


class Writer:
    """Random text in one language.

    Args:
        rng: Source of every choice.
        language: One of `LANGUAGES`.
        split: Which words may occur.
    """

    def __init__(self, rng: Random, language: str, split: Split) -> None:
        self._rng = rng
        self._words = words(language, split)

    def phrase(self, count: int) -> str:
        """`count` words, the first with a capital."""
        text = " ".join(self._rng.choices(self._words, k=count))
        return text[0].upper() + text[1:]

    def title(self) -> str:
        """Two to five words; a few titles are all capitals."""
        text = self.phrase(self._rng.randint(2, 5))
        return text.upper() if self._rng.random() < 0.2 else text

    def sentence(self) -> str:
        """Five to fourteen words with a comma here, a number there, and a full stop."""
        text = self.phrase(self._rng.randint(5, 14))
        draw = self._rng.random()
        if draw < 0.3:
            text = text.replace(" ", ", ", 1)
        elif draw < 0.45:
            text = f"{text} {self._rng.randint(2, 1999)}"
        return text + self._rng.choice("....;?!")

    def prose(self, characters: int) -> str:
        """Whole sentences, at least `characters` long together."""
        sentences: list[str] = []
        while sum(map(len, sentences)) < characters:
            sentences.append(self.sentence())
        return " ".join(sentences)

    def amount(self) -> str:
        """A sum of money such as `1 249.50`."""
        whole = self._rng.randint(1, 10 ** self._rng.randint(1, 5))
        return f"{whole:,}.{self._rng.randint(0, 99):02d}".replace(",", " ")

    def date(self) -> str:
        """A day in one of three notations."""
        year = self._rng.randint(1950, 2039)
        month, day = self._rng.randint(1, 12), self._rng.randint(1, 28)
        notations = ("{d:02d}.{m:02d}.{y}", "{y}-{m:02d}-{d:02d}", "{d}/{m}/{y}")
        return self._rng.choice(notations).format(d=day, m=month, y=year)
